# SPDX-License-Identifier: GPL-2.0-only
"""Agents on other hosts, with an ssh that stays here: who is asked for what, and what is said."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipttrace.cli import main
from ipttrace.link import LinkError
from ipttrace.link import ssh as link_ssh
from ipttrace.link.ssh import SshLink, SshLinks
from ipttrace.stream.frames import Decoder
from tests.paths import DATA

FAR = DATA / "far_agent.py"
AGENT = [sys.executable, str(FAR), "far"]

# Its last argument is the command, the one before it the host.
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
    """A folder in front of the PATH, with an ssh that goes nowhere and a user that is not root."""
    scripts = {"ssh": SSH, "sudo": SUDO, "id": "#!/bin/sh\necho 1000\n"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    return tmp_path


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What the person will type; returns the list of what they are asked."""

    def types(*words: str) -> list[str]:
        asked: list[str] = []
        waiting = list(words)

        def ask(host: str, prompt: str) -> str:
            asked.append(prompt)
            return waiting.pop(0)

        monkeypatch.setattr(link_ssh, "ask_secret", ask)
        return asked

    return types


def _hello(link: SshLink, decoder: Decoder | None = None) -> dict[str, object]:
    decoder = decoder or Decoder()
    while not (frames := decoder.feed(os.read(link.stream.fileno(), 65536))):
        pass
    return frames[0].json


def test_sudo_s_password_is_asked_once_and_the_control_line_still_works(
    far: Path, typed: Callable[..., list[str]]
) -> None:
    asked = typed("secret of web1")
    # GIVEN a host where we are not root
    with SshLinks(["web1"], AGENT, ["--", "tcp", "port", "443"]) as links:
        # WHEN its agent is started
        (link,) = links.start(quiet=True)
        decoder = Decoder()
        hello = _hello(link, decoder)
        # THEN one password was asked for, and the agent has its arguments, and not the password
        assert asked == ["sudo password for web1: "]
        assert hello["argv"] == ["agent", "--control", "--", "tcp", "port", "443"]
        assert "secret" not in (far / "asked").read_text()
        # and the agent obeys the same line that the password went along
        link.stop()
        frames = [
            frame
            for data in iter(lambda: link.stream.read(65536), b"")
            for frame in decoder.feed(data)
        ]
        assert frames[-1].json["reason"] == "stopped"
        assert link.close() == 0
    assert not link.repeat(alone=True)


def test_sudo_that_wants_no_password_gets_none(
    far: Path, typed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = typed()
    monkeypatch.setenv("FREE", "1")
    with SshLinks(["web1"], AGENT, []) as links:
        (link,) = links.start(quiet=True)
        assert _hello(link)["host"] == "far"
    assert asked == []


def test_a_wrong_password_is_asked_again(
    far: Path, typed: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = typed("wrong", "secret of web1")
    with SshLinks(["web1"], AGENT, []) as links:
        links.start(quiet=True)
    assert len(asked) == 2
    assert capsys.readouterr().err == "ipttrace: web1: Sorry, try again.\n"


def test_a_password_goes_to_another_host_only_when_the_person_says_so(
    far: Path, typed: Callable[..., list[str]]
) -> None:
    # GIVEN two hosts, of which the second would take no password but its own
    asked = typed("secret of web1", "", "secret of web2")
    with SshLinks(["web1", "web2"], AGENT, []) as links:
        # WHEN the person first says: the same, then its own
        links.start(quiet=True)
    # THEN all was offered, nothing done unasked
    assert asked == [
        "sudo password for web1: ",
        "sudo password for web2 (Enter: as for web1): ",
        "sudo password for web2: ",
    ]


def test_sudo_that_refuses_says_so_in_one_line(
    far: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFUSES", "1")
    assert main(["print", "--ssh", "web1", "--remote-command", " ".join(AGENT)]) == 1
    assert capsys.readouterr().err == "ipttrace: web1: far is not in the sudoers file.\n"


def test_without_sudo_there_it_says_to_log_in_as_root(
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


def test_a_host_without_ipttrace_is_told_of_by_name(
    far: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["print", "--ssh", "web1", "--remote-command", "/opt/none/ipttrace"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "ipttrace: web1: /opt/none/ipttrace is not installed there:"
        " install it, or name it with --remote-command"
    )


def test_a_login_script_that_talks_does_not_spoil_the_stream(
    far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREETING", "Welcome to far!\nipttrace is cool; no newline here: ")
    monkeypatch.setenv("FREE", "1")
    with SshLinks(["web1"], AGENT, []) as links:
        (link,) = links.start(quiet=True)
        assert _hello(link)["host"] == "far"


def test_one_host_that_cannot_ends_the_others(
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
    # THEN it is said which one, and the first one is gone, too
    assert capsys.readouterr().err == "ipttrace: web2: no route to web2\n"
    assert all(link._process.poll() is not None for link in links)


def test_escapes_from_the_far_side_are_shown_harmless(
    far: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (far / "ssh").write_text("#!/bin/sh\nprintf '\\033[2Jbad\\n' >&2\nexit 255\n")
    assert main(["print", "--ssh", "web1"]) == 1
    assert capsys.readouterr().err == "ipttrace: web1: \\x1b[2Jbad\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ssh=-oProxyCommand=reboot"], "this is no host"),
        (["--ssh", ""], "this is no host"),
        (["--ssh", "web1 reboot"], "this is no host"),
        (["--ssh", "web1\n"], "this is no host"),
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
