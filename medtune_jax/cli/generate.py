"""Answers one prompt, every prompt of a file, or what is typed.

A tuned model is asked with the template that it was tuned with; a model that names none is given the text as it is.
Where a template is used and --instruction is given, the prompt is the input that the instruction is about; without
--instruction the prompt itself is the instruction. In --input_file every line is a prompt; in a .jsonl file every line
is an object with "prompt" and optionally its own "instruction".

--out=FILE.jsonl keeps the answers to a file as they come. Stopped by Ctrl-C or SIGTERM it exits with 75; the same
command again asks what is missing and ends with the bytes of an undisturbed run. Without --out what is answered by then
is printed, and the exit status is 1. A prompt that is too long for the model has the finish_reason prompt_too_long.

--interactive reads prompts from stdin, line by line, and writes each answer as it comes. Earlier turns stand before the
new prompt, each as a whole text of the template; the oldest are forgotten, and that is told, when the context is full.
/help lists its commands. What is said is kept in memory only.

--method=greedy takes the likeliest token, sample draws (--temperature --top_k --top_p --min_p --seed), beam searches
(--num_beams --length_penalty --n_best). --draft=prompt writes greedy's text in fewer passes where that repeats its
prompt.

--json_schema=FILE and --regex=PATTERN hold the answer to a grammar: JSON is written on one line, an expression is
matched by the whole answer, and an answer that reaches --max_new_tokens is closed within it. Where so few tokens do not
hold the shortest text found, the answer is empty and its finish_reason is length.

On several machines the same command runs on each, as `medtune train --help` says; the first writes and speaks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from medtune_jax.cli.arguments import refuse_given
from medtune_jax.cli.prompts import Asked, answer_prompts, read_prompts
from medtune_jax.cli.several import define_mesh_flag, define_process_flags, joined_as, sigterm_as_ctrl_c
from medtune_jax.errors import Interrupted, Stopped, UserError

if TYPE_CHECKING:
    from medtune_jax.data.prompts import Template
    from medtune_jax.generate.engine import Engine
    from medtune_jax.generate.results import Generation
    from medtune_jax.generate.sampling import Beam, Method
    from medtune_jax.tasks.base import Grammar

SUMMARY = "answer prompts with a checkpoint or a run"

OF_SAMPLE = ("temperature", "top_k", "top_p", "min_p", "seed")
OF_BEAM = ("num_beams", "length_penalty", "n_best")
OF_FILE = ("batch_size", "out")
Result = dict[str, Any]


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `medtune generate`."""
    text, yes, choice = absl_flags.DEFINE_string, absl_flags.DEFINE_bool, absl_flags.DEFINE_enum
    number, real = absl_flags.DEFINE_integer, absl_flags.DEFINE_float
    text("model", None, "Hugging Face directory or run folder.", required=True, flag_values=flags)
    text("prompt", None, "The prompt.", flag_values=flags)
    text("input_file", None, "Prompts instead of --prompt: a text file or a .jsonl file.", flag_values=flags)
    yes("interactive", False, "Prompts from stdin instead, with history.", flag_values=flags)
    text("out", None, "Of --input_file: FILE.jsonl for the answers; resumable.", flag_values=flags)
    text("instruction", None, "What is asked about the prompt.", flag_values=flags)
    text(
        "template", None, "Prompt template, or none = the text as it is; the model's own without it.", flag_values=flags
    )
    yes("force_template", False, "Ask with --template even if the model was tuned with another.", flag_values=flags)
    choice("method", "greedy", ["greedy", "sample", "beam"], "How tokens are chosen.", flag_values=flags)
    number("max_new_tokens", 256, "Most tokens of an answer.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "stop",
        [],
        "Text before which an answer ends; repeatable, in a shell --stop=$'\\n' is a line.",
        flag_values=flags,
    )
    real("temperature", 1.0, "Of --method=sample.", flag_values=flags)
    number("top_k", 0, "Of --method=sample; 0 = all tokens.", flag_values=flags)
    real("top_p", 1.0, "Of --method=sample.", flag_values=flags)
    real("min_p", 0.0, "Of --method=sample: least share of the likeliest token's probability.", flag_values=flags)
    number("seed", 0, "Of --method=sample.", lower_bound=0, flag_values=flags)
    real("repetition_penalty", 1.0, "Of --method=greedy and sample; 1 = none.", flag_values=flags)
    text("json_schema", None, "FILE of a JSON schema of which the answer is an instance.", flag_values=flags)
    text("regex", None, "Regular expression (Rust's syntax) that the whole answer matches.", flag_values=flags)
    number("num_beams", 4, "Of --method=beam.", flag_values=flags)
    real("length_penalty", 1.0, "Of --method=beam: power of the length that a score is divided by.", flag_values=flags)
    number("n_best", 1, "Of --method=beam: so many answers with their scores.", flag_values=flags)
    choice("draft", "none", ["none", "prompt"], "Of --method=greedy: what is proposed and verified.", flag_values=flags)
    number(
        "batch_size",
        None,
        "Of --input_file: prompts answered at once; as many as fit without it.",
        lower_bound=1,
        flag_values=flags,
    )
    choice("dtype", "float32", ["float32", "bfloat16"], "Type of weights and arithmetic.", flag_values=flags)
    choice("cache_dtype", None, ["int8"], "Type of the cached keys and values; --dtype without it.", flag_values=flags)
    real(
        "cache_gib",
        None,
        "GiB that the cache may take on each device; what is free without it.",
        lower_bound=0,
        flag_values=flags,
    )
    number(
        "max_positions",
        None,
        "Positions of prompt and answer together; the checkpoint's own without it (raising it extrapolates).",
        lower_bound=2,
        flag_values=flags,
    )
    define_mesh_flag(flags)
    define_process_flags(flags)


def run(flags: absl_flags.FlagValues) -> Result | list[Result] | None:
    """Returns {"prompt", "generated", "finish_reason"}, for a file one per prompt, for a session one per turn.

    With --n_best also "alternatives", [{"generated", "score"}]; with --draft also "passes", "drafted" and "accepted".
    None where nothing is left to be printed: in a process that does not speak, and after a session without --json.
    """
    with _stoppable(flags):
        _refuse_without_effect(flags)
        asked = [] if flags.interactive else read_prompts(flags.prompt, flags.input_file, flags.instruction)
        method = _method(flags)
        with joined_as("medtune generate", flags), sigterm_as_ctrl_c(), _stoppable(flags):
            return _run(flags, asked, method)


def human(result: Result | list[Result]) -> str:
    """Returns the answers as text; those of a file below their prompts."""
    if isinstance(result, list):
        return "\n\n".join(f"> {one['prompt']}\n{human(one)}" for one in result)
    if "alternatives" in result:
        return "\n".join(f"{one['score']:.4f}  {one['generated']}" for one in result["alternatives"])
    return str(result["generated"])


@contextmanager
def _stoppable(flags: absl_flags.FlagValues) -> Iterator[None]:
    """Says of a KeyboardInterrupt, which SIGTERM is too, whether the same command continues what was begun."""
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt:
        if flags.out:
            raise Interrupted("What is answered is kept. Give the same command again to continue.") from None
        raise Stopped() from None


def _refuse_without_effect(flags: absl_flags.FlagValues) -> None:
    if [flags.prompt is not None, flags.input_file is not None, flags.interactive].count(True) != 1:
        raise UserError("Give either --prompt or --input_file or --interactive.")
    where = f"--method={flags.method}"
    if flags.method != "sample":
        refuse_given(flags, OF_SAMPLE, where, "--method=sample")
    if flags.method != "beam":
        refuse_given(flags, OF_BEAM, where, "--method=beam")
    if flags.method != "greedy":
        refuse_given(flags, ["draft"], where, "--method=greedy")
    if flags.method == "beam":
        refuse_given(flags, ["repetition_penalty", "stop"], where, "--method=greedy")
    if flags.draft != "none" and flags.repetition_penalty != 1:
        raise UserError("--draft verifies plain greedy decoding: leave out --repetition_penalty, or --draft.")
    if flags.json_schema is not None or flags.regex is not None:
        by = "json_schema" if flags.regex is None else "regex"
        others = ["json_schema", "interactive", "stop", "draft", "repetition_penalty"]
        given = [name for name in others if name != by and flags[name].value != flags[name].default]
        given += ["method=beam"] if flags.method == "beam" else []
        if given:
            raise UserError(f"--{by} decodes by a grammar, which --{given[0]} does not go with: leave one of them out.")
    if flags.input_file is None:
        refuse_given(flags, OF_FILE, "--interactive" if flags.interactive else "--prompt", "--input_file")
    if flags.template is None:
        refuse_given(flags, ["force_template"], "the model's own template", "--template=NAME")
    if flags.n_best > 1 and flags.interactive and not flags.json:
        refuse_given(flags, ["n_best"], "a session, which shows one answer", "--json")


def _method(flags: absl_flags.FlagValues) -> Method | Beam:
    from medtune_jax.generate.sampling import Beam, Greedy, Sample

    if flags.method == "sample":
        return Sample(flags.temperature, flags.top_k, flags.top_p, flags.min_p, flags.repetition_penalty)
    if flags.method == "beam":
        return Beam(num_beams=flags.num_beams, length_penalty=flags.length_penalty, n_best=flags.n_best)
    return Greedy(flags.repetition_penalty)


def _run(flags: absl_flags.FlagValues, asked: list[Asked], method: Method | Beam) -> Result | list[Result] | None:
    import jax

    from medtune_jax.train.saved.disk import one_writer_of_file, refuse_object_store

    if flags.out:
        refuse_object_store(flags.out, "--out")
    if flags.interactive and jax.process_count() > 1:
        raise UserError(f"--interactive talks with one process, and there are {jax.process_count()}: start one.")
    grammar = _grammar(flags)
    with one_writer_of_file(Path(flags.out), "--out") if flags.out else nullcontext():
        return _answer(flags, asked, method, grammar)


def _answer(
    flags: absl_flags.FlagValues, asked: list[Asked], method: Method | Beam, grammar: Grammar | None
) -> Result | list[Result] | None:
    from medtune_jax.compilation_cache import use_compilation_cache
    from medtune_jax.generate.conversation import refuse_too_long, render
    from medtune_jax.generate.engine import Engine
    from medtune_jax.generate.placing import mesh_for
    from medtune_jax.processes import is_first
    from medtune_jax.train.agreement import program_and_weights, require_same
    from medtune_jax.train.load import load_model

    use_compilation_cache()
    settings = {"settings": [*_settings(flags, grammar), flags.batch_size, flags.cache_gib, flags.mesh]}
    require_same({**settings, "prompts": asked, **program_and_weights(Path(flags.model))})
    loaded = load_model(
        flags.model,
        dtype=flags.dtype,
        mesh=partial(mesh_for, flags.mesh),
        max_positions=flags.max_positions,
        force_template=flags.force_template and flags.template is not None,
    )
    template = _template(flags, loaded.template)
    engine = Engine(
        loaded.params,
        loaded.config,
        loaded.tokenizer,
        mesh=loaded.mesh,
        dtype=flags.dtype,
        cache_dtype=flags.cache_dtype,
        cache_bytes=None if flags.cache_gib is None else int(flags.cache_gib * 2**30),
        donate=True,
    )
    options: dict[str, Any] = {
        "method": method,
        "max_new_tokens": flags.max_new_tokens,
        "seed": flags.seed,
        "stop": tuple(flags.stop),
        "draft": None if flags.draft == "none" else flags.draft,
    }
    if flags.batch_size is not None:
        options["batch_size"] = flags.batch_size
    if flags.interactive:
        return _converse(flags, engine, template, options)
    generate = engine.generate if grammar is None else partial(_generate_by_grammar, engine, template, grammar)
    texts = [render(template, prompt, instruction) for prompt, instruction in asked]
    if flags.prompt is not None:
        ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(texts[0])]
        refuse_too_long("--prompt", len(ids), loaded.config.max_positions)
        answer = generate([ids], **options)[0]
        if answer.finish_reason == "prompt_too_long":
            raise UserError(
                f"--prompt has {len(ids)} tokens with its template, and the {loaded.config.max_positions} positions of "
                f"{flags.model} hold no answer of the grammar behind them. Shorten it."
            )
        return _described(flags, flags.prompt, answer) if is_first() else None
    results, count = {}, len(asked)

    def done(index: int, answer: Generation) -> Result:
        results[index] = _described(flags, asked[index].prompt, answer)
        return results[index]

    try:
        found = answer_prompts(
            engine,
            texts,
            done,
            generate=generate,
            out=flags.out,
            identity=[loaded.sha256, loaded.tokenizer.sha256, *_settings(flags, grammar)],
            **options,
        )
    except KeyboardInterrupt:
        if flags.out:
            raise
        from medtune_jax.cli.main import as_text, say

        if is_first():
            say(as_text(sys.modules[__name__], [results[index] for index in sorted(results)], as_json=flags.json))
        raise Stopped(
            f"{len(results):,} of {count:,} prompts are answered and printed. With --out=FILE.jsonl answers are kept, "
            "and the same command continues."
        ) from None
    return found if is_first() else None


def _grammar(flags: absl_flags.FlagValues) -> Grammar | None:
    from medtune_jax.tasks.base import Grammar

    if flags.regex is not None:
        return Grammar("regex", flags.regex)
    if flags.json_schema is None:
        return None
    try:
        return Grammar("json_schema", Path(flags.json_schema).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--json_schema: {flags.json_schema} cannot be read as text: {error}") from None


def _generate_by_grammar(
    engine: Engine,
    template: Template | None,
    grammar: Grammar,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    draft: None,
    **options: Any,
) -> list[Generation]:
    """Engine.decode_grammar, called as Engine.generate is; stop strings and a draft were refused."""
    from medtune_jax.generate.engine import GrammarRequest

    requests = [GrammarRequest(prompt, grammar, max_new_tokens, number) for number, prompt in enumerate(prompts)]
    return engine.decode_grammar(requests, template, **options)


def _converse(
    flags: absl_flags.FlagValues, engine: Engine, template: Template | None, options: dict[str, Any]
) -> list[Result] | None:
    from medtune_jax.cli.conversation import converse
    from medtune_jax.generate.conversation import Conversation, render

    render(template, "", flags.instruction)  # refuses an instruction without a template
    conversation = Conversation(
        engine.tokenizer, template, engine.config.max_positions, flags.max_new_tokens, flags.instruction
    )

    streams = flags.method != "beam"

    def answer(tokens: list[int], *, turn: int, on_text: Any) -> Generation:
        streamed: dict[str, Any] = {"on_text": lambda _, text: on_text(text)} if streams else {}
        return engine.generate([tokens], rows=[turn], **streamed, **options)[0]

    # With --json stdout is the result's.
    results = converse(conversation, answer, partial(_described, flags), sys.stderr if flags.json else sys.stdout)
    return results if flags.json else None


def _described(flags: absl_flags.FlagValues, prompt: str, answer: Generation) -> Result:
    told: Result = {"prompt": prompt, "generated": answer.text, "finish_reason": answer.finish_reason}
    if flags.n_best > 1:
        told["alternatives"] = [{"generated": one.text, "score": one.score} for one in answer.alternatives]
    if flags.draft != "none":
        told |= {"passes": answer.passes, "drafted": answer.drafted, "accepted": answer.accepted}
    return told


def _template(flags: absl_flags.FlagValues, own: str | None) -> Template | None:
    """Returns the template to ask with; None = the text as it is."""
    from medtune_jax.data.prompts import choose_name, get_template

    name = choose_name(own, flags.template, flags.force_template, flags.model) or "none"
    return None if name == "none" else get_template(name)


def _settings(flags: absl_flags.FlagValues, grammar: Grammar | None) -> list[Any]:
    """Returns the values of all flags that decide what an answer is, beside model, prompt and template."""
    names = ("method", "max_new_tokens", "stop", *OF_SAMPLE, *OF_BEAM, "repetition_penalty", "draft", "dtype")
    schema = None if grammar is None or flags.json_schema is None else grammar.text  # the file may be a pipe
    return [*(flags[name].value for name in (*names, "cache_dtype", "max_positions", "regex")), schema]
