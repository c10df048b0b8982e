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
