"""What a model was made from travels with it, and gated text is never forgotten on the way."""

import json
import os
import stat
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import jax
import pytest
import yaml
from hf_folder import CONFIG

from medtune_jax.cli.main import dispatch
from medtune_jax.convert import push as push_module
from medtune_jax.convert.hf_export import export_params
from medtune_jax.convert.origin import Data, Origin, model_card, origin_json, read_origin, tuned, with_adapter
from medtune_jax.convert.push import check_release
from medtune_jax.convert.tiny import write_tiny_model
from medtune_jax.errors import UserError
from medtune_jax.model.llama import init_params
from medtune_jax.tasks import registry
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import Row

BASE = Origin("llama-2-7b", "llama2")
GATED = replace(BASE, data={"ward": Data(3, "ward agreement", True), "NCBI-disease": Data(5, "CC0-1.0", False)})


def rows(*sources):
    return [Row("i", "x", "y", source) for source in sources]


@pytest.fixture
def ward(monkeypatch):
    """A credentialed source of this test's own."""
    source = replace(SOURCES["sample-nli"], name="ward", aliases=(), licence="ward agreement", credentialed=True)
    monkeypatch.setitem(registry._BY_ANY_NAME, "ward", source)


def write_origin(folder, origin):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "origin.json").write_text(json.dumps(origin_json(origin)))


def test_the_licence_is_that_of_the_base_and_of_all_data(ward):
    made = tuned(BASE, rows("ncbi", "ward", "ward", "NCBI-disease", "NCBI-disease"))
    assert made.data == {"NCBI-disease": Data(3, "CC0-1.0", False), "ward": Data(2, "ward agreement", True)}
    assert made.licence == "llama2 AND CC0-1.0 AND ward agreement"
    assert made.credentialed == ["ward"] and made.unlicensed == []


def test_a_model_tuned_on_a_tuned_model_remembers_the_first_data(tmp_path):
    write_origin(tmp_path / "first", GATED)
    again = tuned(read_origin(tmp_path / "first"), rows("JNLPBA"))
    assert tuned(again, rows("JNLPBA")).data["JNLPBA"].rows == 2
    assert {*again.data} == {"ward", "NCBI-disease", "JNLPBA"} and again.credentialed == ["ward"]


def test_what_an_adapter_was_tuned_on_counts_where_training_goes_on_from_it(tmp_path):
    write_origin(tmp_path / "ours", GATED)
    assert with_adapter(replace(BASE, data={"ward": Data(2, "ward agreement", True)}), tmp_path / "ours").data == {
        "ward": Data(5, "ward agreement", True),
        "NCBI-disease": Data(5, "CC0-1.0", False),
    }
    (tmp_path / "theirs").mkdir()
    assert with_adapter(BASE, tmp_path / "theirs").unlicensed == ["source adapter theirs"]
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert with_adapter(BASE, tmp_path / "theirs").licence == "llama2 AND mit"


@pytest.mark.parametrize("text", ["{", "[]", '{"base": "b"}', '{"base": "b", "base_licence": "c", "data": {"x": {}}}'])
def test_a_damaged_origin_is_an_error_and_not_a_model_without_gated_data(tmp_path, text):
    (tmp_path / "origin.json").write_text(text)
    with pytest.raises(UserError, match=r"origin\.json is damaged"):
        read_origin(tmp_path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: llama2\ntags: [x]\n---\n# A", "llama2"),
        ("---\nlicense: other\nlicense_name: Own Terms 1.0\n---\n", "Own Terms 1.0"),
        ('---\nlicense_name: "Terms: \\"own\\" #1"\n---\n', 'Terms: "own" #1'),
        ("---\nlicense: 'it''s ours'\n---\n", "it's ours"),
        ("# No front matter\nlicense: mit\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_base_licence_is_what_its_card_says_and_never_a_default(tmp_path, card, licence):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert read_origin(tmp_path) == Origin(tmp_path.name, licence)


def test_the_card_names_every_licence_and_warns_of_gated_text_and_of_unknown_terms():
    card = model_card(GATED, {"parameters": "7"})
    assert 'license_name: "llama2 AND CC0-1.0 AND ward agreement"\n' in card
    assert "under a data use agreement (ward)" in card and "| ward | 3 | ward agreement |" in card
    unknown = model_card(tuned(Origin("b", "unknown"), rows("notes")), {})
    assert "No licence is known of the base checkpoint b, source notes" in unknown


def test_gated_weights_and_weights_of_unknown_terms_are_not_pushed():
    with pytest.raises(UserError, match=r"tuned on ward, text under a data use agreement.*--i_may_release"):
        check_release(GATED, "me/model", False)
    check_release(GATED, "me/model", True)
    asked = replace(BASE, data={"notes": Data(1, " Unknown (owner asked)", False)})
    with pytest.raises(UserError, match="no licence is known of source notes"):
        check_release(asked, "me/model", True)
    with pytest.raises(UserError, match=r"no licence is known of the base checkpoint b.*--base_licence"):
        check_release(Origin("b", "unknown"), "me/model", True)
    with pytest.raises(UserError, match="write owner/name"):
        check_release(BASE, "model", False)


def test_a_licence_is_read_from_our_card_as_it_was_written_there(tmp_path):
    licence = 'Own: "terms" #2, it\'s so'
    (tmp_path / "README.md").write_text(model_card(Origin("b", licence), {}))
    assert read_origin(tmp_path).licence == licence
    front = (tmp_path / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["license_name"] == licence


def test_a_run_that_does_not_say_its_data_is_not_one_without_gated_data(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"a run without model/origin\.json.*medtune train --workdir=.*/run"):
        read_origin(tmp_path / "run")
    command = ["export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--push=me/model"]
    assert dispatch(command) == 2 and "which data the model was tuned on" in capsys.readouterr().err


@pytest.mark.parametrize(("origin", "others"), [(GATED, False), (BASE, True)])
def test_an_export_of_gated_weights_is_its_owners_only(tmp_path, origin, others):
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), CONFIG)
    umask = os.umask(0o022)
    try:
        export_params(params, CONFIG, tmp_path / "out", origin=origin)
        assert os.umask(umask) == 0o022
    finally:
        os.umask(umask)
    written = [tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert {bool(stat.S_IMODE(path.stat().st_mode) & 0o077) for path in written} == {others}
    assert read_origin(tmp_path / "out") == origin
    assert origin.licence in (tmp_path / "out" / "README.md").read_text()


class Hub:
    """Stands for the hub's client; `calls` is what was asked of it."""

    endpoint = "https://hub"
    calls: ClassVar[list] = []

    def create_repo(self, repository, *, private, exist_ok):
        self.calls.append(("create", repository, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, folder_path))


@pytest.fixture
def hub(monkeypatch):
    Hub.calls = []
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    return Hub


def test_export_pushes_only_behind_the_gate_and_before_any_work(tmp_path, hub, capsys):
    write_tiny_model(tmp_path / "model", ["the flu is a disease"] * 9)
    write_origin(tmp_path / "model", GATED)
    command = ["export", f"--run={tmp_path / 'model'}", f"--out={tmp_path / 'out'}", "--push=me/model"]
    assert dispatch(command) == 2 and not (tmp_path / "out").exists() and not hub.calls
    assert "--i_may_release" in capsys.readouterr().err
    assert dispatch([*command, "--i_may_release", "--json"]) == 0
    assert hub.calls == [("create", "me/model", True), ("upload", "me/model", str(tmp_path / "out"))]
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["pushed"] == "https://hub/me/model" and said["credentialed"] == ["ward"]


def test_a_stated_base_licence_fills_a_gap_and_never_overrules_the_card(tmp_path, capsys):
    write_tiny_model(tmp_path / "model", ["the flu is a disease"] * 9)
    command = ["export", f"--run={tmp_path / 'model'}", f"--out={tmp_path / 'out'}", "--base_licence=llama2"]
    assert dispatch([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["licence"] == "llama2"
    write_origin(tmp_path / "model", replace(BASE, base_licence="apache-2.0"))
    assert dispatch([command[0], command[1], f"--out={tmp_path / 'again'}", command[3]]) == 2
    assert "the base's card says apache-2.0" in capsys.readouterr().err


def test_a_hub_that_refuses_is_an_error_of_the_user(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(hub, "create_repo", lambda *a, **k: (_ for _ in ()).throw(OSError("401")))
    with pytest.raises(UserError, match="me/model cannot be written: 401"):
        push_module.push(tmp_path, "me/model")
