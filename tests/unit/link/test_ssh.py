# SPDX-License-Identifier: GPL-2.0-only
"""Agents on other hosts, with an ssh that stays on this one: passwords, messages, bad usage."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipttrace.cli import main
from ipttrace.link.base import LinkError
from ipttrace.link.ssh import passwords, session
from ipttrace.link.ssh.command import ssh_command
from ipttrace.link.ssh.hosts import SshLinks
from ipttrace.link.ssh.session import SshLink
from ipttrace.stream.decoder import Decoder
from tests.paths import DATA

FAR = DATA / "far_agent.py"
AGENT = [sys.executable, str(FAR), "far"]

# The last argument is the command, the one before it the host.
SSH = """#!/bin/sh
for last; do before=$host; host=$command; command=$last; done
export HOST="$host"
[ -n "$GREETING" ] && printf %s "$GREETING"
exec sh -c "$command"
"""
SUDO = """#!/bin/sh
# sudo -S -p PROMPT -- COMMAND …
prompt=$3; shift 4
echo "$HOST $*" >> "$ASKED"
[ -n "$REFUSES" ] && { echo "far is not in the sudoers file." >&2; exit 1; }
[ -n "$FREE" ] && exec "$@"
while :; do
    printf %s "$prompt" >&2
    read -r word || exit 1
    [ "$word" = "secret of $HOST" ] && exec "$@"
    echo "Sorry, try again." >&2
done
"""


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of the PATH: ssh runs the command here, and the user is not root."""
    scripts = {"ssh": SSH, "sudo": SUDO, "id": "#!/bin/sh\necho 1000\n"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    return tmp_path


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets what the user types; returns the list of prompts."""

    def types(*words: str) -> list[str]:
        prompts: list[str] = []
        answers = list(words)

        def ask(host: str, prompt: str) -> str:
            prompts.append(prompt)
            return answers.pop(0)

        monkeypatch.setattr(passwords, "ask_secret", ask)
        return prompts

    return types


def _hello(link: SshLink, decoder: Decoder | None = None) -> dict[str, object]:
    decoder = decoder or Decoder()
    while not (frames := decoder.feed(os.read(link.stream.fileno(), 65536))):
        pass
    return frames[0].json


def test_sudo_s_password_is_asked_for_once_and_the_control_line_still_works(
    far: Path, typed: Callable[..., list[str]]
) -> None:
    prompts = typed("secret of web1")
    # GIVEN a host where the user is not root
    with SshLinks(["web1"], AGENT, ["--", "tcp", "port", "443"]) as links:
        # WHEN its agent is started
        (link,) = links.start(quiet=True)
        decoder = Decoder()
        hello = _hello(link, decoder)
        # THEN one password was asked for; the agent has its arguments but not the password
        assert prompts == ["sudo password for web1: "]
        assert hello["argv"] == ["agent", "--control", "--", "tcp", "port", "443"]
        assert "secret" not in (far / "asked").read_text()
        # AND the agent obeys the pipe that carried the password
        link.stop()
        frames = [
            frame
            for data in iter(lambda: link.stream.read(65536), b"")
            for frame in decoder.feed(data)
        ]
        assert frames[-1].json["reason"] == "stopped"
        assert link.close() == 0
    assert not link.print_kept(alone=True)


def test_no_password_is_asked_for_if_sudo_needs_none(
    far: Path, typed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = typed()
    monkeypatch.setenv("FREE", "1")
    with SshLinks(["web1"], AGENT, []) as links:
        (link,) = links.start(quiet=True)
        assert _hello(link)["host"] == "far"
    assert prompts == []


def test_a_wrong_password_is_asked_for_again(
    far: Path, typed: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = typed("wrong", "secret of web1")
    with SshLinks(["web1"], AGENT, []) as links:
        links.start(quiet=True)
    assert len(prompts) == 2
    assert capsys.readouterr().err == "ipttrace: web1: Sorry, try again.\n"


def test_a_password_is_reused_for_another_host_only_if_the_user_agrees(
    far: Path, typed: Callable[..., list[str]]
) -> None:
    # GIVEN two hosts with different passwords
    prompts = typed("secret of web1", "", "secret of web2")
    with SshLinks(["web1", "web2"], AGENT, []) as links:
        # WHEN the user first answers "same", then with the right password
        links.start(quiet=True)
    # THEN reuse was offered, not assumed
    assert prompts == [
        "sudo password for web1: ",
        "sudo password for web2 (Enter: same as for web1): ",
        "sudo password for web2: ",
    ]


def test_a_refusal_by_sudo_is_one_line(
    far: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFUSES", "1")
    assert main(["print", "--ssh", "web1", "--remote-command", " ".join(AGENT)]) == 1
    assert capsys.readouterr().err == "ipttrace: web1: far is not in the sudoers file.\n"


def test_without_sudo_there_the_message_says_to_log_in_as_root(
    far: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (far / "sudo").unlink()
    monkeypatch.setenv("PATH", f"{far}:{_only(far, 'sh', 'env')}")
    assert main(["print", "--ssh", "web1", "--remote-command", sys.executable]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "ipttrace: web1: tracing needs root, and there is no sudo there: log in as root (root@…)"
    )


def _only(place: Path, *names: str) -> Path:
    """A folder with these commands and no others."""
    folder = place / "only"
    folder.mkdir()
    for name in names:
        found = next(path for path in ("/bin", "/usr/bin") if os.path.exists(f"{path}/{name}"))
        (folder / name).symlink_to(f"{found}/{name}")
    return folder


def test_a_host_without_ipttrace_is_named(far: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["print", "--ssh", "web1", "--remote-command", "/opt/none/ipttrace"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "ipttrace: web1: /opt/none/ipttrace is not installed there:"
        " install it, or name it with --remote-command"
    )


def test_the_output_of_a_login_script_does_not_damage_the_stream(
    far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREETING", "Welcome to far!\nipttrace is cool; no newline here: ")
    monkeypatch.setenv("FREE", "1")
    with SshLinks(["web1"], AGENT, []) as links:
        (link,) = links.start(quiet=True)
        assert _hello(link)["host"] == "far"


def test_a_host_that_cannot_be_reached_ends_the_others(
    far: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN two hosts, and an ssh that cannot reach the second
    text = SSH.replace(
        "exec sh", '[ "$host" = web2 ] && { echo "no route to web2" >&2; exit 255; }\nexec sh'
    )
    (far / "ssh").write_text(text)
    monkeypatch.setenv("FREE", "1")
    links = SshLinks(["web1", "web2"], AGENT, [])
    # WHEN they are started
    with pytest.raises(LinkError), links:
        links.start(quiet=True)
    # THEN the message names it, and the first one has ended, too
    assert capsys.readouterr().err == "ipttrace: web2: no route to web2\n"
    assert all(link._process.poll() is not None for link in links)


def test_escape_sequences_from_the_other_host_are_made_harmless(
    far: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (far / "ssh").write_text("#!/bin/sh\nprintf '\\033[2Jbad\\n' >&2\nexit 255\n")
    assert main(["print", "--ssh", "web1"]) == 1
    assert capsys.readouterr().err == "ipttrace: web1: \\x1b[2Jbad\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ssh=-oProxyCommand=reboot"], "not a valid host name"),
        (["--ssh", ""], "not a valid host name"),
        (["--ssh", "web1 reboot"], "not a valid host name"),
        (["--ssh", "web1\n"], "not a valid host name"),
        (["--ssh", "web1", "--ssh", "web2"], "one host at a time"),
        (["--remote-command", "x"], "add --ssh HOST"),
        (["--ssh", "web1", "--remote-command", "'"], "no closing quotation"),
        (["--ssh", "web1", "--remote-command", ""], "must name a command"),
    ],
)
def test_bad_usage_is_one_line_before_anything_starts(
    arguments: list[str], words: str, far: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (far / "ssh").write_text("#!/bin/sh\ntouch started\n")
    with pytest.raises(SystemExit) as ended:
        main(["print", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (far / "started").exists()


def test_a_login_without_end_is_given_up_in_one_line(
    far: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a host that accepts the connection, greets, and never runs the script
    (far / "ssh").write_text("#!/bin/sh\necho hello\nexec sleep 600\n")
    monkeypatch.setattr(session, "LOGIN_PATIENCE", 0.5)
    assert main(["print", "--ssh", "web1", "--remote-command", " ".join(AGENT)]) == 1
    assert capsys.readouterr().err == "ipttrace: web1: no login within 0 s\n"


def test_ssh_is_told_to_give_up_a_host_that_does_not_answer() -> None:
    assert "ConnectTimeout=30" in ssh_command("web1", ["ipttrace"], [])
