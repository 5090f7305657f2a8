"""The upload of an export to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from sdpo.commands.export.folder import MARK
from sdpo.errors import UserError, cause


def check_upload(repo: str) -> None:
    """Reject an upload that cannot succeed, before the export takes time.

    Args:
        repo: the name of a repository, USER/NAME.

    Raises:
        UserError: if the name has another form, the hub is switched off, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"--push-to-hub {repo!r}: expected USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push-to-hub needs a network, and HF_HUB_OFFLINE is set: unset it")
    if get_token() is None:
        raise UserError("--push-to-hub needs a token of the hub: run `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, repo: str) -> None:
    """Upload a folder, and create its repository where there is none.

    Args:
        folder: the folder of an export.
        repo: the name of the repository, USER/NAME.

    Raises:
        UserError: if the upload fails.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=[MARK])
    except Exception as error:  # no network, no right to write, a full quota: the hub's client has many classes
        raise UserError(
            f"--push-to-hub {repo}: {cause(error)}\nThe export is complete, in {folder}; to upload it later: "
            f"hf upload {repo} {folder}"
        ) from error
