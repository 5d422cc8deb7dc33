"""The main job on samples, verb by verb, as scripts/quickstart.sh launches it: python scripts/quickstart.py OUT

Every step is the real command, printed as it runs; only the samples and the tiny model are written through the library.
Exits 1 where a step fails or a task ends below 0.8.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SOURCES = ("sample-disease", "sample-relation", "sample-nli")
TEMPLATE = "medtuned_train"
BAR = 0.8
MARKER = ".medtune-quickstart"  # only a folder that has it is ever cleared


def main(out: Path) -> None:
    """Runs the steps into `out`, prints the table; raises SystemExit where something is not as promised."""
    started = time.monotonic()
    clear(out)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / ".jax-cache"))
    raw, rows, tiny, run, exported = (out / name for name in ("raw", "rows", "tiny", "run", "exported"))

    step(1, "write the sample corpora")
    from medtune_jax.data_prep.samples import write_samples

    print("\n".join(f"  {path.relative_to(out)}" for path in write_samples(raw)))
    step(2, "native files to instruction rows")
    medtune("prepare", f"--raw_dir={raw}", f"--sources={','.join(SOURCES)}", f"--out={rows}")
    step(3, "write a tiny random Llama and train its tokenizer")
    write_model(tiny, rows)
    step(4, "score it untrained")
    evaluated = ["--split=test", "--decode=template"]
    before = medtune(
        "evaluate",
        f"--model={tiny}",
        f"--data={rows}",
        f"--template={TEMPLATE}",
        f"--out={out / 'before'}",
        *evaluated,
    )
    step(5, "train")
    medtune(
        "train",
        "--config=quickstart",
        f"--workdir={run}",
        f"--config.model.path={tiny}",
        f"--config.data.path={rows}",
    )
    step(6, "score it trained")
    after = medtune("evaluate", f"--model={run}", f"--data={rows}", f"--out={run / 'evaluation' / 'test'}", *evaluated)
    step(7, "export to a Hugging Face directory and read it back")
    medtune("export", f"--run={run}", f"--out={exported}")
    difference = logit_difference(run, exported, rows)
    print(f"  largest difference of a logit between run and export: {difference}")
    step(8, "compare before and after")
    medtune("compare", "--scores", str(out / "before"), str(run / "evaluation" / "test"), f"--out={out / 'comparison'}")

    print_table(before, after)
    print(f"\nEverything lies in {out}:")
    for what, where in (
        ("the report", "run/evaluation/test/report.html"),
        ("before beside after", "comparison/compare.html"),
        ("loss curve", "run/loss.png"),
        ("rows", "rows"),
        ("Hugging Face export", "exported"),
    ):
        print(f"  {what:<20} {out / where}")
        if not (out / where).exists():
            raise SystemExit(f"{out / where} was not written.")
    print(f"Done in {time.monotonic() - started:.0f} s.")
    if difference != 0:
        raise SystemExit("The export does not compute what the run computes.")
    low = [name for name, entry in after["sources"].items() if entry["metrics"][entry["metric"]] < BAR]
    if low:
        raise SystemExit(f"Below {BAR} after training: {', '.join(low)}.")


def clear(out: Path) -> None:
    """Makes `out` an empty folder; refuses one that holds something which no quickstart wrote."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise SystemExit(f"{out} holds other files; name another folder, or empty it.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def step(number: int, what: str) -> None:
    print(f"\n== {number}/8 {what}", flush=True)


def medtune(verb: str, *flags: str) -> dict[str, Any]:
    """Runs `medtune verb *flags --json` and returns its result; its log goes to our stderr."""
    print("  $ " + shlex.join(["medtune", verb, *flags]), flush=True)
    command = [sys.executable, "-m", "medtune_jax", verb, *flags, "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        raise SystemExit(f"medtune {verb} failed with exit status {finished.returncode}.")
    return json.loads(finished.stdout.splitlines()[-1])


def write_model(folder: Path, rows: Path) -> None:
    """Writes the tiny model; its tokenizer is trained on the training rows, as they will be read."""
    from medtune_jax.convert.tiny import write_tiny_model
    from medtune_jax.data.prompts import get_template
    from medtune_jax.tasks.rows import read_rows

    template = get_template(TEMPLATE)
    train = read_rows(rows, "train")
    config = write_tiny_model(
        folder, [template.prompt(row.instruction, row.input) + template.completion(row.output) for row in train]
    )
    print(f"  {config.num_layers} layers, {config.hidden_size} wide, {config.vocab_size} pieces")


def logit_difference(run: Path, exported: Path, rows: Path) -> float:
    """Returns the largest absolute difference of the float32 logits of run and export on a test row."""
    import jax.numpy as jnp

    from medtune_jax.data.encode import encode_prompt
    from medtune_jax.data.prompts import get_template
    from medtune_jax.model.llama import forward, logits
    from medtune_jax.tasks.rows import read_rows
    from medtune_jax.train.load import load_model

    row, template = read_rows(rows, "test")[0], get_template(TEMPLATE)
    found = []
    for folder in (run, exported):
        model = load_model(folder)
        ids = encode_prompt(model.tokenizer, template, row.instruction, row.input)
        tokens = jnp.asarray([ids])
        hidden = forward(model.params, model.config, tokens, positions_BS=jnp.arange(len(ids))[None])
        found.append(logits(model.params, model.config, hidden)[..., : model.config.vocab_size])
    return float(jnp.abs(found[0] - found[1]).max())


def print_table(before: dict[str, Any], after: dict[str, Any]) -> None:
    print(f"\n{'held-out rows':<16} {'metric':<12} {'n':>4} {'constant':>9} {'before':>7} {'after':>7}  95% interval")
    constants = json.loads(Path(after["scores"]).read_text(encoding="utf-8"))["sources"]
    for name in SOURCES:
        old, new = before["sources"][name], after["sources"][name]
        metric = new["metric"]
        constant = constants[name]["baselines"]["constant"]["metrics"][metric]
        low, high = new["ci95"][metric]
        print(
            f"{name:<16} {metric:<12} {new['n']:>4} {constant:>9.3f} {old['metrics'][metric]:>7.3f} "
            f"{new['metrics'][metric]:>7.3f}  [{low:.3f}, {high:.3f}]"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/quickstart.py OUT")
    main(Path(sys.argv[1]).resolve())
