"""The training loop, and the command `python -m jaxformer.train --experiment=NAME`."""

import argparse
import dataclasses
import importlib.metadata
import inspect
import json
import logging
import math
import sys
import time
import typing
from pathlib import Path

import grain
import jax
import jax.numpy as jnp

from jaxformer.attention import Choice, choose_implementation, implementation_from
from jaxformer.checkpoint import open_checkpoints, restore, restore_record, save
from jaxformer.config import UserError, did_you_mean, require, to_dict
from jaxformer.data import Data, digests, prepare_data
from jaxformer.document_mask import limit_window
from jaxformer.evaluate import validate
from jaxformer.experiment import Experiment, attention_shape, list_experiments, load_experiment, make_state
from jaxformer.generate import generate
from jaxformer.metrics import (
    Progress,
    TrainingFailure,
    describe_validation,
    duration,
    open_writer,
    peak_tflops,
    recent_loss,
    training_flops_per_token,
)
from jaxformer.optimizer import make_schedule
from jaxformer.packing import make_batches, packing_report
from jaxformer.plan import count_embeddings, print_plan
from jaxformer.run_folder import (
    check_folder,
    check_same,
    identify,
    make_folder,
    peak_memory,
    read_json,
    run_record,
    write_json,
)
from jaxformer.step import TrainState, train_step
from jaxformer.tokenizer import Tokenizer


def train(experiment: Experiment, workdir: Path, *, seed: int) -> dict:
    """Runs an experiment in a folder, or resumes it there; returns its summary.

    Raises:
        UserError: the configuration does not fit the data, the device or what the folder holds.
        TrainingFailure: a loss or a gradient is not finite.
    """
    steps = experiment.training.steps
    identity = identify(experiment, seed)
    check_folder(workdir, identity, "identity")
    if (summary := read_json(workdir / "summary.json")) and summary["status"] == "finished":
        validation = {name: summary[f"validation/{name}"] for name in ("loss", "bits_per_byte")}
        print(f"{workdir}: finished, {summary['steps']} steps, validation {describe_validation(validation)}")
        return summary
    print(f"jaxformer {importlib.metadata.version('jaxformer')}: {experiment.name}, seed {seed}, in {workdir}")

    choose_implementation(experiment.attention, attention_shape(experiment))  # Refused before hours of preparation.
    data = prepare_data(experiment, seed)
    data_digests = digests(data)
    check_folder(workdir, data_digests, "digests")
    batches = make_batches(
        data.shards,
        data.plans,
        data.weights,
        experiment.packing,
        rows_per_step=experiment.training.rows_per_step,
        seed=seed,
    )
    attention = choose_attention(experiment, batches, workdir)
    state = make_state(experiment, seed, attention.implementation)
    describe(experiment, state, data, attention)

    make_folder(workdir)
    with open_checkpoints(workdir / "checkpoints", experiment.checkpoint) as checkpoints:
        record = {"identity": identity, "digests": data_digests, "seconds": 0.0}
        if checkpoints.latest_step() is not None:
            stored = restore_record(checkpoints)
            for key in ("identity", "digests"):
                check_same(f"checkpoints in {workdir} belong", record[key], stored[key])
            state, data_state = restore(checkpoints, state)
            batches.set_state(data_state)
            record["seconds"] = stored["seconds"]
            print(f"resumed from step {int(state.step)}")
        if not (workdir / "config.json").exists():
            record_of_run = run_record(experiment, identity, data_digests, attention.implementation)
            write_json(workdir / "config.json", record_of_run)
        first_step = int(state.step)
        writer, note = open_writer(workdir, first_step=first_step)
        print(f"metrics     {workdir / 'metrics.jsonl'}; {note}")
        progress = Progress(
            writer,
            steps=steps,
            every_steps=experiment.training.log_every_steps,
            schedule=make_schedule(experiment.optimizer, steps),
            flops_per_token=training_flops_per_token(experiment.model, experiment.packing.row_length),
            peak=experiment.training.peak_tflops or peak_tflops(jax.devices()[0].device_kind),
        )
        jitted_step = jax.jit(train_step, donate_argnums=0)
        started = time.perf_counter() - record["seconds"]
        for step in range(first_step, steps):
            # Validated after it was saved, and again if the run stopped in between.
            if step > 0 and step % experiment.evaluation.every_steps == 0:
                progress.flush()
                progress.add_validation(step, validate(state, data.validation, experiment.evaluation))
            batch = next(batches)
            data_state = batches.get_state()
            state, metrics = jitted_step(state, batch)
            # A step's metrics are fetched after the next one is dispatched: the device does not wait for the host.
            progress.add(step + 1, metrics)
            if step + 1 == steps or (step + 1) % experiment.checkpoint.every_steps == 0:
                progress.flush()
                save(checkpoints, state, data_state, {**record, "seconds": time.perf_counter() - started})
    validation = validate(state, data.validation, experiment.evaluation)
    progress.add_validation(steps, validation)
    writer.close()

    seconds = time.perf_counter() - started
    summary = summarise(experiment, seed, workdir, seconds, validation)
    write_json(workdir / "summary.json", summary)
    if experiment.evaluation.sample_tokens:
        text = sample(state, data.tokenizer, experiment, seed)
        (workdir / "sample.txt").write_text(text, encoding="utf-8")
        print(f"a sample ({workdir / 'sample.txt'}):\n{text}\n")
    print(f"finished in {duration(seconds)}: validation {describe_validation(validation)}; results in {workdir}")
    return summary


def summarise(experiment: Experiment, seed: int, workdir: Path, seconds: float, validation: dict[str, float]) -> dict:
    """Returns what `summary.json` holds of a run that is finished."""
    steps = experiment.training.steps
    return {
        "status": "finished",
        "experiment": experiment.name,
        "seed": seed,
        "steps": steps,
        "tokens": steps * experiment.training.rows_per_step * experiment.packing.row_length,
        "seconds": seconds,
        "device_hours": seconds / 3600 * jax.device_count(),
        "peak_memory_bytes": peak_memory(),
        "train/loss": recent_loss(workdir),
        **{f"validation/{name}": value for name, value in validation.items()},
    }


def choose_attention(experiment: Experiment, batches: grain.DatasetIterator, workdir: Path) -> Choice:
    """Returns the choice of the attention, compared on the run's first batch; the batches begin where they did."""
    begin = batches.get_state()
    batch = next(batches)
    batches.set_state(begin)
    shape = attention_shape(experiment)
    starts_BT, ends_BT = (jnp.asarray(x[: shape.rows]) for x in (batch.document_starts_BT, batch.document_ends_BT))
    if shape.window:
        starts_BT, ends_BT = limit_window(starts_BT, ends_BT, shape.window)
    record = read_json(workdir / "config.json")
    was_timed = (
        record and record["config"]["attention"]["autotune"] and record["device"] == jax.devices()[0].device_kind
    )
    recorded = implementation_from(record["attention"]) if was_timed else None
    return choose_implementation(experiment.attention, shape, starts_BT, ends_BT, recorded=recorded)


def describe(experiment: Experiment, state: TrainState, data: Data, attention: Choice) -> None:
    """Prints, once at the start, what will run on what."""
    training, row_length = experiment.training, experiment.packing.row_length
    device = jax.devices()[0]
    tokens_per_step = training.rows_per_step * row_length
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flops = training_flops_per_token(experiment.model, row_length)
    print(f"device      {jax.device_count()} x {device.device_kind}, {jnp.dtype(state.compute_dtype).name} matmuls")
    print(f"attention   {attention}")
    print(f"tokenizer   {data.tokenizer.vocabulary_size} pieces, digest {data.tokenizer.digest[:12]}")
    for shards, plan, weight in zip(data.shards, data.plans, data.weights, strict=True):
        m = shards.manifest
        share = f", {weight / sum(data.weights):.0%} of the rows" if len(data.shards) > 1 else ""
        print(f"corpus      {m.origin} (licence: {m.licence}), digest {m.corpus_digest[:12]}{share}")
        print(
            f"            {m.documents['train']:,} documents, {m.tokens['train']:,} tokens to train on, "
            f"{m.documents['validation']:,} to validate; {m.duplicates} duplicates and {m.empty} empty removed"
        )
        print(f"packing     {packing_report(plan, shards.tokens)}")
    print(f"model       {parameters:,} parameters, {parameters - count_embeddings(experiment):,} without embeddings")
    print(
        f"training    {training.steps:,} steps of {training.rows_per_step} rows x {row_length} = {tokens_per_step:,} "
        f"tokens, {training.steps * tokens_per_step:,} in all; {flops / 1e6:,.1f} MFLOPs per token"
    )


def sample(state: TrainState, tokenizer: Tokenizer, experiment: Experiment, seed: int) -> str:
    """Returns a text that the model writes from BOS on, up to its EOS or the configured number of tokens."""
    limit = experiment.model.learned_positions or math.inf
    length = int(min(experiment.evaluation.sample_tokens, limit - 1))
    prompt = jnp.full((1, 1), tokenizer.bos_id, jnp.int32)
    ids = generate(state.model, prompt, length=length, key=jax.random.key(seed), temperature=0.8)[0, 1:].tolist()
    ids = ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
    return tokenizer.decode([i for i in ids if i < tokenizer.vocabulary_size])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 done, 1 a failed training, 2 what the user can put right."""
    # Orbax and TFDS tell at length, through absl, what they do.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        options, overrides = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        experiment = load_experiment(options.experiment, overrides)
        if options.print_config:
            print(json.dumps(to_dict(experiment), indent=2))
        elif options.plan:
            print_plan(experiment)
        else:
            workdir = options.workdir or Path("runs", experiment.name, f"seed_{options.seed}")
            train(experiment, workdir, seed=options.seed)
    except (UserError, TrainingFailure) as error:
        print(f"jaxformer: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("\njaxformer: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the options and the overrides `--section.field=value` by dotted path."""
    sections = typing.get_type_hints(Experiment)
    documented = "\n\n".join(
        f"--{name}.FIELD=VALUE\n{inspect.getdoc(kind)}"
        for name, kind in sections.items()
        if dataclasses.is_dataclass(kind)
    )
    parser = _Parser(
        prog="python -m jaxformer.train",
        description="Trains an experiment, or resumes it where it stopped.",
        epilog=f"experiments here: {', '.join(list_experiments()) or 'none'}\n\n{documented}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--experiment", required=True, help="a file in experiments/, or a path to one")
    parser.add_argument("--workdir", type=Path, help="run folder (default: runs/EXPERIMENT/seed_SEED)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and data order (default: 0)")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("--plan", action="store_true", help="print size, memory, disk and expected time, and exit")
    options, rest = parser.parse_known_args(arguments)
    require(0 <= options.seed < 2**20, f"--seed ({options.seed}) must lie in [0, {2**20})")
    overrides = {}
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        known = ["experiment", "workdir", "seed", "print_config", "plan", "help"]
        require(
            argument.startswith("--") and "." in name,
            f"unknown argument {argument!r}{did_you_mean(name, known)}; see --help",
        )
        require(bool(equals), f"--{name} needs a value: --{name}=VALUE")
        overrides[name] = value
    return options, overrides


if __name__ == "__main__":
    sys.exit(main())
