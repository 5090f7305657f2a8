"""`sdpo sample`: an image of a run's tuned model or of a model, by the pipeline's own call."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image

from sdpo.assembly.model import load_model, load_tuned, matrix_precision, warn_of_truncated
from sdpo.commands.target import open_target
from sdpo.distributed.processes import Processes
from sdpo.errors import UserError

_SOFTWARE = "sdpo"  # the EXIF entry by which `is_sample` recognises an image


def is_sample(path: Path) -> bool:
    """Whether an image file was written by `save_sample`, so that another sample may replace it."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Software) == _SOFTWARE
    except Exception:  # Pillow's readers raise errors of many classes for what is no image
        return False


def save_sample(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the path's ending.

    Raises:
        UserError: if Pillow knows no such format, or the file cannot be written.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    try:
        image.save(path, exif=exif)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {path} cannot be written: {error}") from error


def sample_target(target: str, prompt: str, steps: int, seed: int, compare: bool, device: str = "auto") -> Image.Image:
    """Draw one image, or one of the base and one of the tuned model side by side.

    Args:
        target: a run's directory, or a model as `model.path` names it.
        prompt: the prompt.
        steps: number of sampling steps.
        seed: seed of the starting noise.
        compare: whether to draw the base model's image to the left of the tuned model's.
        device: a device as torch names it, or `auto` for the fastest.

    Raises:
        UserError: if the target cannot be loaded or compared, or its schedule has no such number of steps.
    """
    place = Processes(device).device
    found = open_target(target)
    if compare and found.run is None:
        raise UserError(f"--compare needs the directory of a run, with a base and a tuned model; {target} is a model")
    config, models = found.config, []
    if found.run is None or compare:
        models.append(load_model(config, place))
    if found.run is not None:
        models.append(load_tuned(config, found.run, place))
    warn_of_truncated(models[0], [prompt])
    images: list[Image.Image] = []
    with matrix_precision(config.model.tf32):
        for backbone in models:
            backbone.denoiser(steps, config.sample.eta)  # rejects impossible numbers of steps with a message
            images += backbone.generate([prompt], steps, [seed], backbone.guidance_scale(config.sample.guidance_scale))
    sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for column, image in enumerate(images):
        sheet.paste(image, (column * images[0].width, 0))
    return sheet
