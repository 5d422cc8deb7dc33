"""Decoding by a grammar: nothing malformed whatever model, budget and tokenizer; within it, greedy or a draw."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_engine import LongestMatch, next_logits, tiny_config, tiny_engine

from medtune_jax.config import MeshConfig
from medtune_jax.data.encode import encode_prompt
from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate.answering import answer_rows, ways_of
from medtune_jax.generate.decoding import Decoding
from medtune_jax.generate.derivation import Derivation
from medtune_jax.generate.engine import Engine, GrammarRequest
from medtune_jax.generate.matcher import Vocabulary, vocabulary_of
from medtune_jax.generate.results import Generation
from medtune_jax.generate.sampling import Greedy, Sample
from medtune_jax.model.llama import init_params
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.base import Grammar
from medtune_jax.tasks.extract import ExtractTask
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.rows import Row

TRAIN = get_template("medtuned_train")
TOKENIZER = LongestMatch(['"]', '["', '", "', " \n", "in", "er", '"}', "\\u00"])
TASKS = {
    "list": ExtractTask(),
    "fields": ExtractTask(("on", 'of"f')),
    "ranked": ExtractTask(ranked=True),
    "single": ExtractTask(single=True),
}


def regex(text: str) -> Grammar:
    return Grammar("regex", text)


def asked(grammars: Sequence[Grammar], limits: Sequence[int], tokenizer: Tokenizer = TOKENIZER) -> list[GrammarRequest]:
    """Requests with prompts of their own."""
    prompts = [encode_prompt(tokenizer, TRAIN, "Find.", "x" * (number % 7)) for number in range(len(grammars))]
    return [GrammarRequest(*one, number) for number, one in enumerate(zip(prompts, grammars, limits, strict=True))]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(TOKENIZER)[0]


@pytest.mark.parametrize("method", [Greedy(), Sample(temperature=2.0, top_k=40, top_p=0.9)], ids=["greedy", "sample"])
def test_no_row_is_malformed_whatever_the_budget(engine: Engine, method: Greedy | Sample) -> None:
    names = [name for name in TASKS for _ in range(16)]
    limits = [*range(3, 35, 2)] * len(TASKS)
    requests = asked([TASKS[name].grammar("") for name in names], limits)
    answers = engine.decode_grammar(requests, TRAIN, method=method, batch_size=8, seed=3)
    reasons = Counter(answer.finish_reason for answer in answers)
    assert set(reasons) == {"constrained", "length"} and reasons["constrained"] > 40
    for name, request, answer in zip(names, requests, answers, strict=True):
        assert len(answer.tokens) <= request.limit
        if answer.finish_reason == "constrained":
            assert TASKS[name].parse(answer.text, "").status == "exact"
            assert engine._core.continuation(request.prompt, answer.tokens) == TRAIN.completion(answer.text)
        else:
            assert (answer.text, answer.passes) == ("", 0)
            assert request.limit < 30
    assert len({answer.text for answer in answers}) > 30


def random_texts(vocabulary: Vocabulary, grammar: Grammar, limits: Sequence[int], draw: random.Random) -> list[str]:
    """The texts that a model would write which chooses anything; "" where a limit holds none."""
    language = vocabulary.language(grammar, " ", " \n")
    texts = [Derivation(vocabulary, language, limit) for limit in limits]
    Derivation.settle(vocabulary, texts)
    while left := [text for text in texts if not text.done]:
        for text in left:
            text.choose(draw.choice(vocabulary.tokens(text.mask).tolist()))
        Derivation.settle(vocabulary, left)
    assert all(len(text.tokens) <= limit for text, limit in zip(texts, limits, strict=True))
    frame = slice(1, -2)
    return [vocabulary.text(text.tokens)[frame] if text.complete else "" for text in texts]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_writes_anything_writes_nothing_malformed(name: str, seed: int) -> None:
    task, vocabulary = TASKS[name], vocabulary_of(TOKENIZER)
    least = len(vocabulary.language(task.grammar(""), " ", " \n").least)
    limits = [least, least + 1, least + 2, *range(least + 3, least + 60, 4)]
    texts = random_texts(vocabulary, task.grammar(""), limits, random.Random(seed))
    assert all(task.parse(text, "").status == "exact" for text in texts)


@pytest.mark.parametrize("folder", ["tokenizers/llama2", "models/stories260K"])
def test_real_tokenizers_spell_what_the_grammar_accepts(folder: str, shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / folder)
    vocabulary, task = Vocabulary(tokenizer), TASKS["fields"]
    prompt = encode_prompt(tokenizer, TRAIN, "Find.", "x")
    for text in random_texts(vocabulary, task.grammar(""), [64, 96, 128], random.Random(0)):
        assert task.parse(text, "").status == "exact"
    for grammar in (regex("Answer: [AB]"), DRUG):
        texts = random_texts(vocabulary, grammar, [64] * 8, random.Random(0))
        assert all(json.loads(text) if grammar is DRUG else text in ("Answer: A", "Answer: B") for text in texts)
    language = vocabulary.language(task.grammar(""), " ", " \n")
    gold = task.render(("", ((("α-synuclein",), ("x",)), (("naïve \u3000 \"5\" µg\n/\x00",),))))[1]  # fmt: skip
    ids = tokenizer.encode("\n" + TRAIN.completion(gold))[len(tokenizer.encode("\n")) :]
    matcher = language.start.deep_copy()
    assert matcher.consume_tokens(ids) and matcher.is_accepting()
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    assert whole[len(before) :] == TRAIN.completion(gold) == vocabulary.text(ids)


def test_a_byte_level_vocabulary_spells_what_the_grammar_accepts(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Learner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    learner = Learner(models.BPE())
    learner.pre_tokenizer, learner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(['{"on": ["fever", "ataxia"], "of\\"f": []}', "naïve α-synuclein"] * 3, trainer)
    learner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    engine = tiny_engine(tokenizer)[0]
    requests = asked([TASKS["fields"].grammar("")] * 4, [30, 40, 60, 60], tokenizer)
    for request, answer in zip(requests, engine.decode_grammar(requests, TRAIN, batch_size=4), strict=True):
        assert TASKS["fields"].parse(answer.text, "").status == "exact"
        assert engine._core.continuation(request.prompt, answer.tokens) == TRAIN.completion(answer.text)


def completions(pattern: str, alphabet: Sequence[str], longest: int) -> set[str]:
    """Every text of at most so many characters that the pattern matches."""
    level, found = [""], set()
    for _ in range(longest + 1):
        found |= {text for text in level if re.fullmatch(pattern, text)}
        level = [text + letter for text in level for letter in alphabet]
    return found


@pytest.mark.parametrize("pattern", ["(ab|ba)*c?", "a{2,4}b", "(a|bc|abc)+"])
def test_greedy_is_the_best_of_the_tokens_by_which_some_text_goes_on(pattern: str) -> None:
    tokenizer = LongestMatch(["ab", "bc", "aa", "ba", "abc"])
    engine, params = tiny_engine(tokenizer, seed=4)
    texts = completions(pattern, "abc", 7)
    requests = asked([regex(pattern)] * 6, [9] * 6, tokenizer)
    decided = 0
    for request, answer in zip(requests, engine.decode_grammar(requests, None, batch_size=2), strict=True):
        tokens: list[int] = []
        text, decisions = "", 0
        while len(text) <= 3:  # beyond, the listed texts are too few
            goes_on = {
                token: text + piece.decode()
                for token, piece in enumerate(tokenizer.pieces())
                if piece and any(one.startswith(text + piece.decode()) for one in texts)
            }
            permitted = [*goes_on, *([tokenizer.eos_id] if text in texts else [])]
            decisions += len(permitted) > 1
            behind = next_logits(params, engine.config, [*request.prompt, *tokens])
            best = min(permitted, key=lambda token: (-behind[token], token))
            if best == tokenizer.eos_id:
                break
            tokens, text = [*tokens, best], goes_on[best]
        else:
            assert list(answer.tokens[: len(tokens)]) == tokens
            continue
        assert (list(answer.tokens), answer.text, answer.decisions) == (tokens, text, decisions)
        decided += decisions
    assert decided or pattern != "(ab|ba)*c?"


def test_forced_text_costs_no_decision_and_no_pass_of_its_own(engine: Engine) -> None:
    forced, fork = asked([regex("nothing to decide"), regex("it is (yes|no), and that is all")], [40, 60])
    first, second = engine.decode_grammar([forced, fork], TRAIN)
    assert (first.text, first.decisions, first.passes) == ("nothing to decide", 0, 0)
    assert second.text in ("it is yes, and that is all", "it is no, and that is all")
    assert second.decisions == second.passes <= 4  # " \n" is one token or two


def test_a_budget_that_holds_no_text_is_named_and_nothing_is_computed(engine: Engine) -> None:
    before = engine.work.passes
    (answer,) = engine.decode_grammar(asked([regex("abcdefgh")], [5]), None)
    assert answer == Generation((), "", "length", 0, 0)
    long = GrammarRequest([1] * (engine.config.max_positions - 3), regex("abcdefgh"), 100, 0)
    assert engine.decode_grammar([long], None)[0].finish_reason == "prompt_too_long"
    assert engine.work.passes == before


def schema(**keywords: object) -> Grammar:
    return Grammar("json_schema", json.dumps(keywords))


DRUG = schema(
    type="object",
    properties={"drug": {"type": "string"}, "dose": {"type": "integer"}, "flag": {"type": "boolean"}},
    required=["drug", "dose", "flag"],
)
NUMBERS = schema(type="array", items={"type": "number"}, minItems=8)
CLOSED = [
    (regex(r"a.*b"), "ab"),
    (regex(r"[A-Z]{3}-[0-9]{4}"), "AAA-0000"),
    (regex(r"(x|yz)+\n?"), "x"),
    (regex(r"[^.]*\."), "."),
    (regex("a+"), "a"),
    (regex(r".*\.(jpg|png)"), ".jpg"),
    (regex(r"(?s).*Answer: (yes|no|maybe)"), "Answer: no"),
    (regex(r"[a-z ]+ because [a-z ]+\."), "a because a."),
    (regex(r".{0,300}\n\nFinal: (?<letter>[A-E])"), "\n\nFinal: A"),
    (regex(r"[a-z&&[^a]]+!"), "b!"),  # Rust's syntax alone: searched
    (NUMBERS, "[0, 0, 0, 0, 0, 0, 0, 0]"),
    (DRUG, '{"drug": "", "dose": 0, "flag": true}'),
    (schema(type="string", pattern=r"^.*@x\.org$"), '"@x.org"'),
    (schema(type="number", exclusiveMinimum=0.5, maximum=0.75), "0.75"),
    (schema(type="integer", multipleOf=7, minimum=1000), "1001"),
    (schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"enum": ["ab", "b"]}, {"$ref": "#/$defs/a"}]}}}), '"b"'),
    (Grammar("json_schema", "true"), "0"),
]


@pytest.mark.parametrize(("grammar", "least"), CLOSED, ids=[least for _, least in CLOSED])
def test_any_grammar_is_closed_in_time_once_the_limit_holds_its_least_text(grammar: Grammar, least: str) -> None:
    vocabulary = vocabulary_of(TOKENIZER)
    language = vocabulary.language(grammar, " ", " \n")
    assert vocabulary.text(language.least) == f" {least} \n"
    limits = [len(language.least) + more for more in (0, 1, 5, 20)]
    for text in random_texts(vocabulary, grammar, limits, random.Random(0)):
        assert vocabulary.completes(language.start, vocabulary.inside(f" {text} \n"))
        if grammar.kind == "json_schema":
            json.loads(text)
        elif "&&" not in grammar.text:
            assert re.fullmatch(grammar.text.replace("(?<", "(?P<"), text)


def test_a_closing_keeps_what_was_written() -> None:
    vocabulary = vocabulary_of(TOKENIZER)
    language = vocabulary.language(regex(r"[a-z]+, Answer: (yes|no)"))
    text = Derivation(vocabulary, language, 30)
    Derivation.settle(vocabulary, [text])
    while not text.done:
        text.choose(vocabulary.inside("q")[0])
        Derivation.settle(vocabulary, [text])
    assert re.fullmatch("q{14,}, Answer: no", vocabulary.text(text.tokens))


class Trimming(LongestMatch):
    """As sentencepiece's common settings: spaces at a text's end are dropped, those in a row are made one."""

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return super().encode_batch_with_offsets([re.sub(" +", " ", text).removesuffix(" ") for text in texts])


TRIMMING = Trimming([" A", "Ans", "wer", "\n\n", "\n ", ".\n", '": ', '", "', " t", "rue"])


@pytest.mark.parametrize("text", [" ", "  x ", "\n", "\n\n", " \n ", ". ", "Answer: ", '{"drug": "'])
def test_forced_text_is_spelled_whole_by_a_tokenizer_that_trims_and_merges(text: str) -> None:
    vocabulary = vocabulary_of(TRIMMING)
    assert vocabulary.text(vocabulary.inside(text)) == text


@pytest.mark.parametrize(
    "grammar", [regex("Answer: [AB]"), regex(r"(a|b)\n\n (x|y)  z"), DRUG, NUMBERS], ids=lambda one: one.text[:12]
)
def test_a_tokenizer_that_trims_and_merges_never_leads_where_the_grammar_does_not(grammar: Grammar) -> None:
    vocabulary = vocabulary_of(TRIMMING)
    language = vocabulary.language(grammar, " ", " \n")
    texts = random_texts(vocabulary, grammar, [len(language.least), 60, 61, 62], random.Random(1))
    assert all(vocabulary.completes(language.start, vocabulary.inside(f" {text} \n")) for text in texts)


def test_a_step_that_the_grammar_refuses_is_told_without_the_parsers_state() -> None:
    vocabulary = vocabulary_of(TOKENIZER)
    text = Derivation(vocabulary, vocabulary.language(regex("[ab]c")), 9)
    with pytest.raises(UserError, match="cannot be followed") as told:
        text.choose(vocabulary.inside("z")[0])
    assert "<state>" not in str(told.value) and len(str(told.value)) < 200


def test_special_ids_and_padding_are_never_chosen() -> None:
    config = tiny_config(TOKENIZER.vocab_size + 29)  # embeddings beyond the tokenizer
    params = init_params(jax.random.key(0), config)
    boosted = [TOKENIZER.bos_id, TOKENIZER.unk_id, TOKENIZER.eos_id, *range(TOKENIZER.vocab_size, config.vocab_size)]
    kernel = np.array(params["lm_head"]["kernel"])
    kernel[:, boosted] *= 100
    engine = Engine({**params, "lm_head": {"kernel": jax.numpy.asarray(kernel)}}, config, TOKENIZER)
    requests = asked([regex("[ -~]{5,9}")] * 4, [12] * 4)
    for answer in engine.decode_grammar(requests, None, method=Sample(temperature=50.0)):
        assert re.fullmatch("[ -~]{5,9}", answer.text)
        assert not set(boosted) & set(answer.tokens)


def test_a_rows_draws_depend_on_its_number_and_the_seed_alone(engine: Engine) -> None:
    requests = asked([TASKS["list"].grammar("")] * 10, [20] * 10)
    method = Sample(temperature=3.0)
    texts = [answer.text for answer in engine.decode_grammar(requests, TRAIN, method=method, batch_size=4, seed=1)]
    few = engine.decode_grammar(requests[5:8], TRAIN, method=method, batch_size=4, seed=1)
    assert [answer.text for answer in few] == texts[5:8]
    other = engine.decode_grammar(requests, TRAIN, method=method, batch_size=4, seed=2)
    assert [answer.text for answer in other] != texts


def test_draws_follow_the_distribution_over_what_is_permitted() -> None:
    tokenizer = LongestMatch()
    engine, params = tiny_engine(tokenizer)
    prompt = encode_prompt(tokenizer, TRAIN, "Pick.", "")
    requests = [GrammarRequest(prompt, regex("[a-e]"), 4, number) for number in range(400)]
    drawn = Counter(a.text for a in engine.decode_grammar(requests, None, method=Sample(), batch_size=32, seed=5))
    logits = next_logits(params, engine.config, prompt)[[tokenizer.encode(letter)[0] for letter in "abcde"]]
    expected = 400 * np.exp(logits) / np.exp(logits).sum()
    found = np.array([drawn[letter] for letter in "abcde"])
    assert found.sum() == 400
    assert ((found - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees of freedom: 0.001


def test_skipping_rows_changes_no_answer(engine: Engine) -> None:
    names = list(TASKS) * 4
    requests = asked([TASKS[name].grammar("") for name in names], [30] * 16)
    whole = engine.decode_grammar(requests, TRAIN, batch_size=4)
    skip = {0, 3, 4, 9, 15}
    told: dict[int, Generation] = {}
    rest = engine.decode_grammar(requests, TRAIN, batch_size=4, skip=skip, on_done=told.__setitem__)
    assert rest == [answer for index, answer in enumerate(whole) if index not in skip]
    assert told == {index: answer for index, answer in enumerate(whole) if index not in skip}


def test_over_a_mesh_the_texts_are_those_of_one_device(engine: Engine) -> None:
    requests = asked([TASKS[name].grammar("") for name in TASKS] * 2, [30] * 8)
    params = init_params(jax.random.key(0), engine.config)
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))
    meshed = Engine(params, engine.config, TOKENIZER, mesh=mesh)
    assert meshed.decode_grammar(requests, TRAIN, batch_size=8) == engine.decode_grammar(requests, TRAIN, batch_size=8)


SCHEMA = {
    "type": "object",
    "properties": {
        "drug": {"enum": ["aspirin", "ibuprofen"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
    },
    "required": ["drug", "days"],
    "additionalProperties": False,
}


def test_a_json_schema_is_answered_on_one_line_by_its_instances(engine: Engine) -> None:
    requests = asked([Grammar("json_schema", json.dumps(SCHEMA))] * 8, [60] * 8)
    answers = engine.decode_grammar(requests, TRAIN, method=Sample(temperature=5.0))
    for answer in answers:
        found = json.loads(answer.text)
        assert list(found) == ["drug", "days"]
        assert found["drug"] in ("aspirin", "ibuprofen") and 1 <= found["days"] <= 30
        assert answer.text == json.dumps(found)
    assert len({answer.text for answer in answers}) > 3


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (regex("a("), "unclosed group"),
        (regex("a)(b"), "regular expression"),
        (regex("(?=a)b"), "look-around"),
        (Grammar("json_schema", "{"), "not JSON"),
        (Grammar("json_schema", "[]"), "not a JSON object"),
        (Grammar("json_schema", "false"), "nothing is an instance"),
        (Grammar("json_schema", '{"x-guidance": {}}'), "x-guidance"),
        (
            Grammar("json_schema", '{"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}'),
            "No text",
        ),
        (Grammar("json_schema", '{"type": "strange"}'), "strange"),
    ],
)
def test_what_is_no_grammar_is_refused_with_its_fault(engine: Engine, grammar: Grammar, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        engine.decode_grammar(asked([grammar], [9]), None)


def test_a_repetition_penalty_is_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="repetition penalty"):
        engine.decode_grammar(asked([regex("a")], [9]), None, method=Greedy(repetition_penalty=1.2))


def test_without_llguidance_the_extra_is_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UserError, match=r"medtune-jax\[grammar\]"):
        Vocabulary(TOKENIZER)


def test_rows_of_every_extraction_source_are_exact_with_an_untuned_model(engine: Engine) -> None:
    names = ("BioASQ-factoid", "BioASQ-list", "medication_status", "coreference")
    rows = [Row("Find.", f"Aspirin {number} was stopped.", "[]", name) for name in names for number in range(2)]
    ways = ways_of(rows, Decoding())
    kinds = {row.source: way.method for row, way in zip(rows, ways, strict=True)}
    told: dict[int, Generation] = {}
    answer_rows(engine, TRAIN, rows, ways, batch_size=4, on_done=told.__setitem__)
    for index, row in enumerate(rows):
        assert kinds[row.source] == "grammar"
        task = get_source(row.source).task
        assert told[index].finish_reason == "constrained"
        assert task.parse(told[index].text, row.input).status == "exact"
