"""Tests that values of tasks' variables are in nothing that a run leaves or shows."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from rhapsody.masking import looks_secret, mask, secrets_of, values_of
from rhapsody.plugins.specs import TaskCall
from tests._support.marker import check_no_named_secrets, check_no_secrets


def test_a_run_on_threads(here: Path) -> None:
    check_no_secrets(here, functions=False)


def test_a_run_in_processes(here: Path) -> None:
    check_no_secrets(here, "-o", "executor=process")


def test_a_run_with_secrets_that_are_named_in_texts(here: Path) -> None:
    check_no_named_secrets(here)


@pytest.mark.parametrize(
    ("name", "secret"),
    {
        "API_TOKEN": True,
        "github_token": True,
        "TOKENS": True,
        "AWS_SECRET_ACCESS_KEY": True,
        "AWS_ACCESS_KEY_ID": True,
        "PGPASSWORD": True,
        "DB_PASS": True,
        "GOOGLE_APPLICATION_CREDENTIALS": True,
        "DATABASE_URL": True,
        "GITHUB_PAT": True,
        "NPM_AUTH": True,
        "SESSION_COOKIE": True,
        "BEARER": True,
        "SLACK_WEBHOOK_URL": True,
        "MYSQL_PWD": True,
        "PWD": False,
        "SSH_AUTH_SOCK": False,
        "AUTHOR": False,
        "TOKENIZERS_PARALLELISM": False,
        "KEYBOARD": False,
        "PASSES": False,
        "PATH": False,
    }.items(),
)
def test_names_tell_what_is_secret(name: str, secret: bool) -> None:
    assert looks_secret(name) is secret


@pytest.mark.parametrize(
    ("text", "masked"),
    {
        "login --password XX -v": "login --password <password> -v",
        "login --password='XX'": "login --password='<password>'",
        "['login', '--api-key', 'XX', 'y']": "['login', '--api-key', '<api_key>', 'y']",
        "f(token='XX', n=1)": "f(token='<token>', n=1)",
        'said \'{"api_key": "XX"}\'': 'said \'{"api_key": "<api_key>"}\'',
        "said \\'{\\'api_key\\': \\'XX\\'}": "said \\'{\\'api_key\\': \\'<api_key>\\'}",
        "API_TOKEN=XX login": "API_TOKEN=<API_TOKEN> login",
        "password: XX": "password: <password>",
        "Authorization: Basic XX==": "Authorization: <Authorization>",
        "'Cookie': 'a=XX; b=XX'": "'Cookie': '<Cookie>'",
        "uses bearer XXXXXXXXXX": "uses bearer <token>",
        "postgres://me:XX@host/db": "postgres://me:<password>@host/db",
        "https://XX@host/x": "https://<user>@host/x",
        "https://host/x?token=XX&n=1": "https://host/x?token=<token>&n=1",
        "https://host/x?sig=XX&n=1": "https://host/x?sig=<signature>&n=1",
        "Config(password=b'XX')": "Config(password=b'<password>')",
        "{'token': b'XX'}": "{'token': b'<token>'}",
        "{'password': ['XX']}": "{'password': ['<password>']}",
        "[('password', 'XX'), ('user', 'me')]": "[('password', '<password>'), ('user', 'me')]",
        'password="""XX"""': 'password="""<password>"""',
        "password = XX": "password = <password>",
        "Server=h;Pwd=XX;": "Server=h;Pwd=<Pwd>;",
    }.items(),
)
def test_values_with_names_that_look_secret_are_masked(text: str, masked: str) -> None:
    text = text.replace("XX", "s3cr3t")
    assert mask(text, ()) == masked
    assert mask(masked, ()) == masked


@pytest.mark.parametrize(
    "text",
    [
        "sorted(key='name')",
        "f(max_tokens=100, token=None)",
        "invalid token: unexpected end",
        "unexpected token: '}'",
        "CredentialError: cannot log in",
        "--password $PASSWORD --token <token>",
        "if token == 'abc':",
        "token = os.environ['API_TOKEN']",
        "password = input()",
        "columns ['password', 'user']",
        "PWD=/home/me",
        "ssh://git@host/x",
        "PASS: test_x",
    ],
)
def test_other_text_is_not_masked(text: str) -> None:
    assert mask(text, ()) == text


def test_masking_takes_linear_time() -> None:
    for text in ("token" * 40_000, "--key" * 40_000, "token='" * 30_000, "http://" * 30_000 + "@"):
        begun = time.process_time()
        mask(text, ())
        assert time.process_time() - begun < 5


@pytest.mark.parametrize("secret", ['pa"ss\\wo\nrd', "a\"b'c\\d-word", "pass/w+ö=rd"])
@pytest.mark.parametrize(
    "form", [str, repr, json.dumps, quote, quote_plus, shlex.quote, lambda text: text.encode()]
)
def test_known_values_are_masked_in_each_form(secret: str, form: Callable[[str], object]) -> None:
    text = mask(f"value: {form(secret)}", values_of({"MY_PLACE": secret}))
    assert re.sub("[b'\"]", "", text) == "value: <MY_PLACE>"


def test_a_secret_that_begins_with_another_one_is_masked_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "a-secret-value")
    environment = {"MODE": "a-secret-value-and-more", "PLACE": "a-secret"}
    call = TaskCall("task.000001", "f", "function", "f()", 0.0, secrets=values_of(environment))
    text = "a-secret-value, a-secret, a-secret-value-and-more"
    for found in (call.masked(text), mask(text, secrets_of(environment))):
        assert found == "<API_TOKEN>, <PLACE>, <MODE>"


def test_both_values_of_a_variable_that_a_task_changes_are_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "of-the-process")
    found = mask("of-the-process, of-the-task", secrets_of({"API_TOKEN": "of-the-task"}))
    assert found == "<API_TOKEN>, <API_TOKEN>"
