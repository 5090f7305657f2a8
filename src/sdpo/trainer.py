"""The loop: prompts, trajectories, scores, advantages, shuffled update; then evaluation, metrics and checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo.assembly import build
from sdpo.config.schema import Config, check_same_run
from sdpo.distributed import launch as sharding
from sdpo.distributed.processes import Processes, explaining_lost_process
from sdpo.distributed.shard import shard
from sdpo.errors import DivergenceError, UserError
from sdpo.evaluation.evaluate import Evaluation, discard_after, evaluate, read_scores, weighted_gain, write_evaluation
from sdpo.evaluation.stopping import Guard, Stop, check_rules
from sdpo.loop.divergence import not_finite
from sdpo.loop.policy import Policy
from sdpo.loop.reward_mix import RewardMix
from sdpo.loop.rollout import rollout
from sdpo.loop.scoring import Scorer, Scores
from sdpo.method import seeds
from sdpo.method.credit import discounted_returns, future_returns
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt, load_prompts
from sdpo.report import write_report
from sdpo.rewards import Reward, check_reward_name
from sdpo.run.checkpoint import Checkpoint, CheckpointStore
from sdpo.run.metrics import MetricsFile
from sdpo.run.progress import ProgressBar
from sdpo.run.result import RESULT, Result
from sdpo.run.trackers import Trackers
from sdpo.system.durable import WRITE_ERRORS, replace_folder, write_whole
from sdpo.system.interrupt import Interruptions, Terminated
from sdpo.system.lock import RunLock


class Trainer:
    """A training run.

    Args:
        config: None is the preset `emoji`.
        pipeline: the user's own diffusers pipeline, instead of `config.model`.
        reward: the user's own callable `(images, prompts, metadata) → scores`, instead of `config.rewards`.
        prompts: the user's own prompts, instead of `config.prompts.train`.

    Raises:
        UserError: if a part cannot be built; nothing has been written then but the run's directory.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        pipeline: Any = None,
        reward: Reward | Callable[..., Any] | None = None,
        prompts: Sequence[str] | None = None,
    ) -> None:
        config = config or Config.load()
        if prompts is not None:
            sections = config.prompts.model_copy(update={"train": list(prompts), "unseen": None})
            config = config.model_copy(update={"prompts": sections})
        if reward is not None:
            config = config.model_copy(update={"rewards": {getattr(reward, "__name__", type(reward).__name__): 1.0}})
        if pipeline is not None:
            config = config.model_copy(update={"model": build.describe_pipeline(config.model, pipeline)})
        self.config = config
        self.algorithm = config.build_algorithm()
        self.prompts = load_prompts(config.prompts.train)
        self.unseen = load_prompts(config.prompts.unseen) if config.prompts.unseen is not None else []
        for name in [] if reward is not None else [*config.rewards, *config.evaluate.observers]:
            check_reward_name(name)
        check_rules(config)
        asked = sharding.requested(config.device)
        self.processes = Processes(config.device, sharded=True)
        device = self.processes.device
        build.check_processes(config, self.processes.count)
        self.sharding = asked if self.processes.count > 1 else None  # one process has all of it
        if self.sharding is not None:
            sharding.check(self.sharding, config, device)
        self.run_dir = build.prepare_run_dir(config, "runs/latest", self.processes.is_main)
        self.lock = RunLock(self.run_dir) if self.processes.is_main else contextlib.nullcontext()
        with self.lock:  # who has it is told now, not when the models are loaded
            build.check_format(self.run_dir)
        spreads = isinstance(self.sharding, sharding.FSDP2)
        place = torch.device("cpu") if spreads else device
        self.backbone = build.build_backbone(config, device, pipeline, place)
        build.prepare_training(self.backbone, config, spreads)
        dtype = build.compute_dtype(config, device)
        shard(self.backbone, self.sharding, device, dtype, self.processes.count)
        self.denoiser = build.build_denoiser(config, self.backbone)
        own = {next(iter(config.rewards)): reward} if reward is not None else None
        rewards = build.load_rewards(config, config.rewards, device, own)
        self.mix = RewardMix(rewards, config.rewards)
        self.evaluation_rewards = {**rewards, **build.load_rewards(config, config.evaluate.observers, device)}
        self.policy = Policy(self.backbone, config.sample.guidance_scale, dtype)
        texts = [p.text for p in [*self.prompts, *self.unseen]]
        self.embeddings = build.encode_prompts(config, self.backbone, texts)
        self.normalizer = build.build_normalizer(config)
        build.compile_network(config, self.backbone, self.policy, self.denoiser, self.embeddings)
        self.micro_batches = build.micro_batches(config, self.policy, self.denoiser, self.embeddings, self.processes)
        self.decode_batch = build.decode_batch(config, self.backbone)
        self.updater = build.build_updater(
            config,
            self.policy,
            self.denoiser,
            self.algorithm,
            self.processes,
            self.micro_batches.update,
            self.sharding,
        )
        self.optimization = self.updater.optimization
        self.store = CheckpointStore(
            self.run_dir / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_best
        )
        self.metrics = MetricsFile(self.run_dir / "metrics.jsonl")
        self.unsaved: Checkpoint | None = None  # of the last epoch, where `checkpoint.every` leaves it out
        self.base: Evaluation | None = None  # before the first epoch
        self.guard = Guard(config.stop_when)
        self.counters: dict[str, float] = {"images": 0, "reward_queries": 0, "denoiser_evaluations": 0, "seconds": 0.0}
        self.epoch = 0
        self.first_epoch = 1  # of those that this call trains; later than 1 after a resume
        self.ended_early: str | None = None  # why, and of which epoch the result is

    # -- the run -----------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Train to the last epoch, from the newest checkpoint if there is one.

        Returns:
            The path of the report.

        Raises:
            UserError: a reward failed, the loss diverged, the disk or the memory is full; the last checkpoint stays.
            Terminated: SIGTERM came, which is handled as long as this call runs.
        """
        with self.lock, Interruptions(self._save_unsaved) as stop, self._explained(), self._rescued(stop):
            self._resume()
            trackers = Trackers(
                self.config.trackers if self.processes.is_main else [], self.run_dir, self.config.model_dump()
            )
            try:
                if self.epoch == 0:
                    self._evaluate(0)
                    self.guard.start(self._base_metrics(), [])
                with ProgressBar(self.config.epochs, self.epoch) as progress:
                    while self.epoch < self.config.epochs and self.guard.stop is None:
                        row = self.train_epoch()
                        trackers.log(row)
                        progress.advance(row)
                        stop.check()
                return self._finish()
            finally:
                trackers.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What ends a run is said in the user's terms."""
        try:
            with explaining_lost_process():
                yield
        except WRITE_ERRORS as error:
            raise UserError(
                f"a file cannot be read or written: {error}. Checkpoints in {self.store.root} are intact: mend it and "
                "repeat the command to resume."
            ) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory: {str(error).splitlines()[0]}\n{build.memory_knobs(self.config, self.micro_batches)}"
            ) from error

    @contextlib.contextmanager
    def _rescued(self, interruptions: Interruptions) -> Iterator[None]:
        """Whatever ends a run, the last epoch that ended is saved."""
        try:
            yield
        except BaseException as stop:
            interruptions.deaf = True
            self._save_unsaved()
            if isinstance(stop, KeyboardInterrupt | Terminated):
                stop.args = (self._how_to_go_on(),)
            raise

    def train_epoch(self) -> dict[str, Any]:
        """One epoch; returns its row of metrics."""
        start = time.perf_counter()
        epoch = self.epoch + 1
        evaluations = self.policy.evaluations
        trajectories, scores = self._sample_and_score(epoch)
        advantages = self._advantages(trajectories, scores)
        update = self.updater.run(trajectories, advantages, self.denoiser, self.embeddings, epoch)
        self._check_finite(epoch, update)
        spent = (trajectories.log_prob[..., 0].numel(), scores.queries, self.policy.evaluations - evaluations)
        row = self._row(epoch, spent, scores, update, time.perf_counter() - start)
        self.epoch = epoch
        every = self.config.evaluate.every
        if epoch == self.config.epochs or (every and epoch % every == 0):
            row |= self._evaluate(epoch)
        self.guard.observe(row)
        if self.processes.is_main or self.optimization.collective:
            checkpoint = self._checkpoint(row)
        if self.processes.is_main:
            self.metrics.append(row)
            self._save(checkpoint)
        self.guard.check(row)  # when the epoch is saved, which is whole whatever the rules ask
        return row

    # -- its parts ---------------------------------------------------------------------------------------

    def _sample_and_score(self, epoch: int) -> tuple[Trajectories, Scores]:
        """This process's share; a remote reward scores one part while the next is sampled."""
        scorer = Scorer(
            self.backbone,
            self.mix,
            self.algorithm.reward_plan,
            decode_batch=self.decode_batch,
            batch_size=self.config.scoring.batch_size,
            gather=self._gather_scores,
        )

        def scored() -> Iterator[Trajectories]:
            for part in self._sample(epoch):
                if (what := not_finite(part)) is not None:
                    raise self._diverged(epoch, what)
                scorer.add(part)
                yield part

        with self.mix.resident():
            groups = self.config.sample.prompts_per_epoch // self.processes.count
            return Trajectories.collect(scored(), groups), scorer.finish()

    def _sample(self, epoch: int) -> Iterator[Trajectories]:
        """Of every batch, a slice. Prompts and their order depend on the global index alone."""
        sample, batch = self.config.sample, self.config.train.batch_size
        share = batch // self.processes.count
        order = seeds.permutation(sample.prompts_per_epoch, self.config.seed, epoch, "batches").reshape(-1, batch)
        mine = order[:, self.processes.rank * share : (self.processes.rank + 1) * share].flatten().tolist()
        prompts = [self._draw_prompt(epoch, index) for index in mine]
        return rollout(
            self.policy,
            self.denoiser,
            self.embeddings,
            prompts,
            mine,
            seed=self.config.seed,
            epoch=epoch,
            branches=self.algorithm.branches,
            micro_batch=self.micro_batches.sample,
            shared_noise=self.config.sample.shared_noise,
            share_first_step=build.shares_first_step(self.config, self.denoiser.ends_random),
        )

    def _draw_prompt(self, epoch: int, index: int) -> Prompt:
        """Prompts go round in a new random order each time all have been used."""
        position = (epoch - 1) * self.config.sample.prompts_per_epoch + index
        lap, place = divmod(position, len(self.prompts))
        return self.prompts[int(seeds.permutation(len(self.prompts), self.config.seed, lap, "prompts")[place])]

    def _gather_scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw scores of all processes."""
        parts = self.processes.gather([{n: v.cpu() for n, v in scores.items()}])
        return {n: torch.cat([part[n] for part in parts]) for n in scores}

    def _advantages(self, trajectories: Trajectories, scores: Scores) -> Tensor:
        returns_of = discounted_returns if self.algorithm.credit == "step" else future_returns
        returns = returns_of(scores.dense, self.algorithm.discount)
        own = list(zip(trajectories.sample_index.tolist(), trajectories.prompts, returns.cpu(), strict=True))
        everyone = sorted(self.processes.gather(own), key=lambda item: item[0])
        advantages = self.normalizer.update([p for _, p, _ in everyone], torch.stack([r for _, _, r in everyone]))
        place = {index: i for i, (index, _, _) in enumerate(everyone)}
        return advantages[[place[i] for i, _, _ in own]].to(returns.device)

    def _row(
        self, epoch: int, spent: tuple[int, int, int], scores: Scores, update: dict[str, Tensor], seconds: float
    ) -> dict[str, Any]:
        """The epoch's metrics; `spent` are images, reward queries and network evaluations of this process."""
        everywhere = self.processes.mean(torch.tensor(spent, dtype=torch.float64)) * self.processes.count
        for name, value in zip(("images", "reward_queries", "denoiser_evaluations"), everywhere.tolist(), strict=True):
            self.counters[name] += round(value)
        self.counters["seconds"] += seconds
        row: dict[str, Any] = {"epoch": epoch, **self.counters}
        for name, value in update.items():
            row[f"train/{name}"] = value.item()
        row["train/learning_rate"] = self.optimization.learning_rate
        # The plan `final` never looks at the first step's image.
        row["reward/first_step"] = None if scores.first is None else self.processes.mean(scores.first.mean()).item()
        row["reward/last_step"] = self.processes.mean(scores.last.mean()).item()
        for name, value in scores.raw.items():
            row[f"reward/{name}"] = self.processes.mean(value).item()
        bad = [name for name, value in row.items() if value is not None and not math.isfinite(value)]
        if bad:
            raise self._diverged(epoch, ", ".join(bad))
        return row

    def _check_finite(self, epoch: int, update: dict[str, Tensor]) -> None:
        """Name what of the update was not finite, on all processes alike, and end the run unless it may be skipped."""
        watch = self.updater.watch
        found = [f for f in self.processes.gather([watch.finding()]) if f is not None]
        if found and not (self.updater.settings.skip_nonfinite and update["skipped_steps"] < watch.optimizer_steps):
            raise self._diverged(epoch, f"{min(found).what}, in optimizer step {min(found).optimizer_step + 1},")
        if found and self.processes.is_main:
            what = f"{min(found).what} was not finite; its optimizer step, and others like it, were skipped"
            print(f"sdpo: warning: epoch {epoch}: {what}", file=sys.stderr)
        own = torch.stack([t.isfinite().all() for t in self.optimization.tensors]).tolist()
        finite = [all(parts) for parts in zip(*self.processes.gather([own]), strict=True)]
        if not all(finite):  # finite gradients can do that too; such weights are never saved
            raise self._diverged(epoch, f"the weight {self.optimization.names[finite.index(False)]}")

    def _diverged(self, epoch: int, what: str) -> DivergenceError:
        kept = self.store.epochs()
        last = f"The checkpoint of epoch {kept[-1]} is intact" if kept else "No checkpoint had been written"
        return DivergenceError(
            f"epoch {epoch}: {what} is not finite. {last}. Lower train.learning_rate "
            f"(now {self.config.train.learning_rate:g}) or train.max_grad_norm, or use a wider model.dtype."
        )

    def _evaluate(self, epoch: int, result: bool = False) -> dict[str, float]:
        """Evaluate the weights that would be saved, in full before training and where they are the run's result.

        Returns:
            The means.
        """
        settings = self.config.evaluate
        ends = result or epoch in (0, self.config.epochs)
        per_prompt = (
            settings.images_per_prompt if ends else settings.images_per_prompt_between or settings.images_per_prompt
        )
        options: dict[str, Any] = dict(
            steps=settings.steps,
            eta=self.config.sample.eta,
            micro_batch=self.micro_batches.sample * self.algorithm.branches,
            decode_batch=self.decode_batch,
            processes=self.processes,
        )
        extra: dict[str, Any] = dict(self.counters, judge=settings.judge)
        with self._averaged_weights():
            found = evaluate(
                self.policy,
                self.embeddings,
                self.prompts,
                self.evaluation_rewards,
                images_per_prompt=per_prompt,
                monitored=settings.monitored,
                **options,
            )
            if ends and self.unseen:
                unseen: Evaluation = evaluate(
                    self.policy,
                    self.embeddings,
                    self.unseen,
                    self.evaluation_rewards,
                    images_per_prompt=per_prompt,
                    **options,
                )
                extra["unseen"] = unseen.as_json()
        if epoch == 0:
            self.base = found
        if self.processes.is_main:
            write_evaluation(found, self.run_dir, epoch, extra)
        row = found.metrics()
        gain = weighted_gain(self.base, found, self.config.rewards) if self.base is not None else None
        return row if gain is None else {**row, "eval_gain": gain}

    def _base_metrics(self) -> dict[str, float]:
        """The base model's evaluation; without monitors that were measured on other images than they are now."""
        if self.base is None:
            return {}
        same = self.base.monitored == self.config.evaluate.monitored
        return {n: v for n, v in self.base.metrics().items() if same or not n.startswith("monitor/")}

    def _averaged_weights(self) -> contextlib.AbstractContextManager[Any]:
        return self.optimization.ema.applied() if self.optimization.ema is not None else contextlib.nullcontext()

    # -- start, stop and resume ----------------------------------------------------------------------------

    def _resume(self) -> None:
        if self.processes.is_main and self.store.epochs():
            check_same_run(self.config, self.run_dir / "config.yaml")
        found = self.store.newest() if self.processes.is_main else None
        last = self.processes.broadcast(found.epoch if found is not None else None)
        if last is not None:
            self._restore(found if found is not None else self.store.load(last))
            self.base = read_scores(self.run_dir, 0)
            rows = self.metrics.read(self.epoch) if self.processes.is_main else []
            self.guard.start(self._base_metrics(), self.processes.broadcast(rows))
        self.first_epoch = self.epoch + 1
        self.processes.barrier()  # all have read what the first process now writes
        if self.processes.is_main:
            discard_after(self.run_dir, self.epoch)
            (self.run_dir / "stopped.json").unlink(missing_ok=True)
            write_whole(self.run_dir / "config.yaml", self.config.to_yaml())
            build.write_environment(self.run_dir / "environment.json", self.backbone.device, self.processes.count)
            self.metrics.start(self.epoch)

    def _checkpoint(self, row: dict[str, Any]) -> Checkpoint:
        """Of the epoch that has just ended."""
        return Checkpoint(
            epoch=self.epoch,
            weights=self.optimization.weights(),
            ema=self.optimization.average(),
            state={
                "updater": self.optimization.state_dict(),
                "normalizer": self.normalizer.state_dict(),
                "mix": self.mix.state_dict(),
                "counters": dict(self.counters),
                "micro_batches": dataclasses.asdict(self.micro_batches),
            },
            score=self.guard.score(row),
        )

    def _save(self, checkpoint: Checkpoint) -> None:
        """Save an epoch, or keep its state at hand where `checkpoint.every` leaves it out."""
        last = self.epoch == self.config.epochs or self.guard.stop is not None
        eligible = bool(self.config.stop_when) and checkpoint.score is not None  # to be the result, if a rule ends it
        if last or eligible or self.epoch % self.config.checkpoint.every == 0:
            self.store.save(checkpoint)
            self.unsaved = None
        else:
            self.unsaved = checkpoint.copy()

    def _save_unsaved(self) -> None:
        if self.unsaved is not None:
            self.store.save(self.unsaved)
            self.unsaved = None

    def _how_to_go_on(self) -> str:
        kept = self.store.epochs()
        return (
            f"the same command goes on after epoch {kept[-1]}"
            if kept
            else "no epoch had ended: the same command begins anew"
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.optimization.take(checkpoint.weights, checkpoint.ema)
        self.optimization.load_state_dict(checkpoint.state["updater"])
        self.normalizer.load_state_dict(checkpoint.state["normalizer"])
        self.mix.load_state_dict(checkpoint.state["mix"])
        self.counters = dict(checkpoint.state["counters"])
        self.epoch = checkpoint.epoch
        self._keep_micro_batches(checkpoint.state["micro_batches"])

    def _keep_micro_batches(self, stored: dict[str, int]) -> None:
        """Those that `auto` found before, as another choice would change the rounding."""
        settings = {"sample": self.config.sample.micro_batch, "update": self.config.train.micro_batch}
        kept = {name: stored[name] for name, setting in settings.items() if setting == "auto"}
        self.micro_batches = dataclasses.replace(self.micro_batches, **kept)
        self.updater.settings = dataclasses.replace(self.updater.settings, micro_batch=self.micro_batches.update)

    def _finish(self) -> Path:
        epoch = self.epoch if self.guard.stop is None else self._end_early(self.guard.stop)
        with self._averaged_weights():
            weights = self.optimization.weights()  # where they are split, all processes gather them
            if self.processes.is_main:
                self._write_result(weights, epoch)
        self.processes.barrier()
        return self.run_dir / "report.html"

    def _write_result(self, weights: Mapping[str, Tensor], epoch: int) -> None:
        staging = self.run_dir / "result.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        result = self.backbone.save(staging, weights)
        record = Result(epoch, averaged=self.optimization.ema is not None)
        (result / RESULT).write_text(json.dumps(dataclasses.asdict(record)) + "\n", encoding="utf-8")
        replace_folder(result, self.run_dir / result.name)
        staging.rmdir()
        write_report(self.run_dir)

    def _end_early(self, stop: Stop) -> int:
        """Where a rule ended the run, its result is the best checkpoint at which none held, evaluated in full.

        Returns:
            The epoch of the result.
        """
        best = self.processes.broadcast(self.guard.best(self.store.epochs()))
        if best is not None:
            checkpoint = self.store.load(best)
            self.optimization.take(checkpoint.weights, checkpoint.ema)
            spent, self.counters = self.counters, dict(checkpoint.state["counters"])
            self._evaluate(best, result=True)
            self.counters = spent
            chosen = f"of epoch {best}, the best checkpoint at which no rule held"
        else:
            chosen = "of the last epoch: no kept checkpoint was evaluated without a rule that held"
        self.ended_early = f"Stopped by stop_when after epoch {stop.epoch}: {stop.reason}. The result is that {chosen}."
        epoch = self.epoch if best is None else best
        if self.processes.is_main:
            record = {"epoch": stop.epoch, "result_epoch": epoch, "text": self.ended_early}
            write_whole(self.run_dir / "stopped.json", json.dumps(record) + "\n")
        return epoch
