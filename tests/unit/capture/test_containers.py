# SPDX-License-Identifier: GPL-2.0-only
"""Which container a cgroup is of, by the names that runtimes give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.capture.containers import Cgroups, Container, identify

ID = "3f2a" + "0" * 60
POD = "12345678-1234-1234-1234-123456789abc"
POD_SLICE = f"kubepods-burstable-pod{POD.replace('-', '_')}.slice"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"system.slice/docker-{ID}.scope", Container("docker", ID)),
        (f"docker/{ID}", Container("docker", ID)),
        (f"docker/{ID}/init", Container("docker", ID)),
        (f"machine.slice/libpod-{ID}.scope/container", Container("podman", ID)),
        (
            f"kubepods.slice/kubepods-burstable.slice/{POD_SLICE}/cri-containerd-{ID}.scope",
            Container("containerd", ID, POD),
        ),
        (f"kubepods/burstable/pod{POD}/{ID}", Container("containerd", ID, POD)),
        (f"kubepods.slice/{POD_SLICE}/crio-{ID}.scope", Container("cri-o", ID, POD)),
        ("machine.slice/machine-web.scope/payload", Container("nspawn", "web")),
        ("lxc.payload.web/system.slice/nginx.service", Container("lxc", "web")),
        ("system.slice/nginx.service", Container(unit="nginx.service")),
        ("user.slice/user-1000.slice/session-1.scope", Container()),
        ("", Container()),
    ],
)
def test_a_path_names_its_container(path: str, found: Container) -> None:
    assert identify(path) == found


def test_the_topmost_cgroup_of_a_container_stands_for_those_below(tmp_path: Path) -> None:
    # GIVEN a host with two containers and a service
    inner = tmp_path / f"system.slice/docker-{ID}.scope/init"
    service = tmp_path / "system.slice/nginx.service"
    for folder in (inner, service):
        folder.mkdir(parents=True)
    cgroups = Cgroups(tmp_path)
    # WHEN they are looked for by what a rule says
    found = cgroups.named(["3f2a", "nginx.service", "4444"])
    assert found == {
        "3f2a": [inner.parent.stat().st_ino],
        "nginx.service": [service.stat().st_ino],
        "4444": [],
    }
    assert cgroups.of(inner.stat().st_ino) == Container("docker", ID)
    assert cgroups.of(1) == cgroups.of(0) == Container()
    # AND of a host without cgroups nothing is found
    assert Cgroups(tmp_path / "none").named(["3f2a"]) == {"3f2a": []}
