"A key leaves only for the host that it is meant for, and no template reads one."
import os
from configparser import ConfigParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from yarl import URL

from llmdata_nb.models import PROVIDERS, endpoint
from llmdata_nb.templates import render

ROOT = Path(__file__).parents[1]
HUGGING_FACE = ".endpoints.huggingface.cloud"


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_recognisable")
    return "hf_recognisable"


@pytest.mark.parametrize("address", [
    "https://evil.example?.endpoints.huggingface.cloud/v1",
    "https://evil.example?x=.endpoints.huggingface.cloud",
    "https://evil.example\\.endpoints.huggingface.cloud/v1",
    "https://evil.example;.endpoints.huggingface.cloud/v1",
    "https://evil.example/?.endpoints.huggingface.cloud",
    "https://evil.example\t.endpoints.huggingface.cloud/v1",
    "https://evil.example%2f.endpoints.huggingface.cloud/v1",
    "https://evil.example:80.endpoints.huggingface.cloud/v1",
    "https://evil.example:x@a.endpoints.huggingface.cloud/v1",
    "https://a.endpoints.huggingface.cloud@evil.example/v1",
    "https://apı.openaı.com/v1",  # upper case would make it another host's variable
    "https://a.endpoints.huggingface.cloud:٨٠/v1",
    "http://10.0.0.1:80/a@b/v1",
    "https://a.endpoints.huggingface.cloud,https://evil.example?.endpoints.huggingface.cloud"])
def test_an_address_that_two_readers_could_read_differently_is_refused(token, address):
    with pytest.raises(ValueError, match="address") as error: endpoint(f"{address}#m")
    assert token not in str(error.value)


@pytest.mark.parametrize("address, has_key", [
    ("https://x1.eu.endpoints.huggingface.cloud/v1", True),
    ("https://X1.EU.Endpoints.HuggingFace.Cloud:443/v1", True),
    ("http://x1.eu.endpoints.huggingface.cloud/v1", False),  # it would travel unencrypted
    ("https://endpoints.huggingface.cloud.evil.example/v1", False),
    ("https://evil.example/a.endpoints.huggingface.cloud", False),
    ("https://evilendpoints.huggingface.cloud/v1", False),
    ("https://[::1]:8000/v1", False),
    ("http://[fe80::1%25eth0]/v1", False)])
def test_the_hugging_face_token_goes_to_its_endpoints_only(token, address, has_key):
    assert endpoint(f"{address}#m").key == (token if has_key else None)


@pytest.mark.parametrize("reference", ["http://ada:secret@gpu:8000/v1", "http://gpu:8000/v1,http://ada:secret@gpu:8001/v1", "http://ada:sec/ret@gpu/v1"])
def test_a_password_is_not_repeated_where_the_name_of_the_model_is_missing(reference):
    with pytest.raises(ValueError, match="no password in an address") as error: endpoint(reference)
    assert "ada" not in str(error.value) and "ret" not in str(error.value)


def test_of_a_fleet_only_its_own_servers_get_the_token(token):
    fleet = endpoint("https://a.endpoints.huggingface.cloud/v1,https://evil.example/v1#m")
    assert [server.key for server in fleet.servers] == [token, None]


@given(st.lists(st.sampled_from(["evil.example", HUGGING_FACE, "a", ".", "/", "?", "\\", ";", ":", "@", "#", "%2f", "[", "]", "&", "443", "⁄", "。", "é"]), max_size=8))
def test_no_address_at_all_sends_the_token_to_another_host(pieces):
    "Beside the parser that sends the request: aiohttp takes the host from yarl"
    reference = f"https://{''.join(pieces)}#m"
    os.environ["HF_TOKEN"] = "hf_recognisable"
    try: server = endpoint(reference)
    except ValueError: return
    finally: del os.environ["HF_TOKEN"]
    if server.key: assert URL(server.url).host.endswith(HUGGING_FACE)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_provider_is_reached_over_https_with_its_own_key(monkeypatch, provider):
    url, variable = PROVIDERS[provider]
    assert url.startswith("https://") or URL(url).host == "localhost"
    if not variable: return
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=f"set {variable} in the environment"): endpoint(f"{provider}:m")
    monkeypatch.setenv(variable, "recognisable")
    assert endpoint(f"{provider}:m").key == "recognisable" and endpoint(f"{provider}:m").url == url


ESCAPES = ["{{ '{0.__init__.__globals__[os].environ}' | attr('format')(cycler) }}",
           "{{ ('{0.__init__.__globals__}' | attr('format'))(joiner) }}",
           "{% set f = '{0.__class__.__mro__}' | attr('format') %}{{ f(messages) }}",
           "{{ cycler.__init__.__globals__.os.environ['OPENAI_API_KEY'] }}",
           "{{ raise_exception.__globals__ }}",
           "{{ messages.__class__.__base__.__subclasses__() }}"]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_of_a_server_reads_no_key(monkeypatch, template):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-recognisable")
    try: text = render(template, [{"role": "user", "content": "x"}])
    except ValueError: return
    assert not any(word in text for word in ("sk-recognisable", "environ", "class", "module"))


def test_no_jinja2_whose_sandbox_lets_format_through():
    "CVE-2025-27516: up to 3.1.5, `|attr('format')` reached past the sandbox"
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    (jinja2,) = [r for r in map(Requirement, settings["DEFAULT"]["requirements"].split()) if r.name == "jinja2"]
    assert "3.1.5" not in jinja2.specifier and "3.1.6" in jinja2.specifier


# One variable, one host

MARKS = st.sampled_from([".", "-", "_", ":", "--", "a", "b", "1", "80", "8000", "A", "[", "]", "::", "%25", "eth0", "zone", "0", "127.0.0.1", "[::1]", "[fe80::1%25a]"])


def host_of(reference):
    "The host and port that a request for `reference` goes to, as yarl reads it; None where it is refused"
    try: url = URL(endpoint(f"http://{reference}/v1#m").url)
    except ValueError: return None
    return url.host, url.port


def variable_of(host):
    "The variable from which `host` takes its key"
    class Heard(dict):
        def get(self, name, default=None):
            self.setdefault("first", name)
            return default
    heard = Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", heard)
        endpoint(f"http://{host}/v1#m")
    return heard["first"]


@given(st.lists(MARKS, max_size=7), st.lists(MARKS, max_size=7))
def test_no_two_hosts_share_a_variable(some, other):
    hosts = ["".join(some), "".join(other)]
    read = [host_of(host) for host in hosts]
    if None in read or read[0] == read[1]: return
    assert variable_of(hosts[0]) != variable_of(hosts[1])


@pytest.mark.parametrize("host, other", [
    ("api.mistral.ai", "api-mistral.ai"), ("a-b.c", "a.b-c"), ("a_b", "a.b"), ("a_b", "a-b"), ("a--b", "a-b"), ("a-b:80", "a.b:80"), ("gpu:8000", "gpu-8000"),
    ("[fe80::1%25ab]", "[fe80::1:25ab]"), ("[::1]:80", "[::1:80]"), ("10.0.0.1", "10.0.0:1"), ("a-b", "a..b"), ("a.b:80", "a.b.80"), ("a_b", "a-.b"), ("a", "a."), ("a_b", "a.-b")])
def test_hosts_that_are_spelled_alike_have_variables_of_their_own(host, other):
    assert host_of(host)
    assert not host_of(other) or variable_of(host) != variable_of(other)


@pytest.mark.parametrize("host, variable", [("gpu:8000", "GPU_8000"), ("api.mistral.ai", "API_MISTRAL_AI"), ("127.0.0.1:8000", "127_0_0_1_8000"),
                                            ("API.Mistral.AI", "API_MISTRAL_AI"), ("[::1]:8000", "___1__8000"), ("my-gpu.lan", "MY__GPU_LAN")])
def test_the_variable_of_a_host(host, variable):
    assert variable_of(host) == f"LLMDATA_API_KEY_{variable}"


def test_the_variable_of_an_older_version_is_named_with_the_new_one(monkeypatch):
    monkeypatch.setenv("LLMDATA_API_KEY_API_MISTRAL_AI", "recognisable-4711")
    assert endpoint("https://api.mistral.ai/v1#m").key == "recognisable-4711"
    with pytest.raises(ValueError, match="set LLMDATA_API_KEY_API__MISTRAL_AI to it") as error: endpoint("https://api-mistral.ai/v1#m")
    assert "4711" not in str(error.value)
    for key in ("", "another"):
        monkeypatch.setenv("LLMDATA_API_KEY_API__MISTRAL_AI", key)
        assert endpoint("https://api-mistral.ai/v1#m").key == (key or None)


# No key in a reference, which is published

@pytest.mark.parametrize("reference", [
    "https://gpu/v1/recognisable-4711#m", "https://gpu/v1#recognisable-4711", "https://gpu/recognisable%2D4711/v1#m", "openai:recognisable-4711", "recognisable-4711",
    "https://gpu/v1/sk-proj-4f9Qz81LmX02aaB7#m", "https://gpu/v1#gsk_4f9Qz81LmX02aaB7", "hf:hf_QwErTyUiOpAsDfGhJkLz", "http://a/v1,http://b/sk-4f9Qz81LmX02aaB7/v1#m"])
def test_a_key_in_a_reference_is_refused_and_not_repeated(monkeypatch, reference):
    monkeypatch.setenv("OPENAI_API_KEY", "recognisable-4711")
    with pytest.raises(ValueError, match="a key stands in it") as error: endpoint(reference)
    assert not any(part in str(error.value) for part in ("4711", "4f9Q", "QwEr"))


@pytest.mark.parametrize("host", ["http://ada:s3cret@gpu:11434", "ada:s3cret@gpu", "http://gpu:11434/?key=s3cret", "http://gpu/s3cret@x", "http://gpu/sk-4f9Qz81LmX02aaB7s3cret"])
def test_no_password_in_ollama_host(monkeypatch, host):
    monkeypatch.setenv("OLLAMA_HOST", host)
    with pytest.raises(ValueError, match="^OLLAMA_HOST") as error: endpoint("ollama:m")
    assert "s3cret" not in str(error.value)
