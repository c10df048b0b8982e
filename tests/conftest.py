"What several test files share."
import signal

import pytest

# a test run that was started in the background of a shell ignores Ctrl-C, and the tests of it would wait for ever
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def project(tmp_path, monkeypatch):
    "An empty folder to work in, with a store of its own"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMDATA_STORE", raising=False)
    return tmp_path
