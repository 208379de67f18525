"""Facts of the machine, read from trees of files like those of Linux."""

import os

import pytest

from monosoup_cli.devices import host

GIB = 1 << 30


@pytest.fixture
def system(tmp_path):
    """Write files of a root: path → text."""

    def write(files):
        for path, text in files.items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return tmp_path

    return write


def meminfo(available):
    return {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {available // 1024} kB\n"}


def v2(limit, used, cache=0, path=""):
    folder = f"sys/fs/cgroup/{path}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\nfile 9\ninactive_file {cache}\nactive_file 3\n",
    }


def v1(limit, used, cache=0, path=""):
    folder = f"sys/fs/cgroup/memory/{path}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"cache 9\ninactive_file 1\ntotal_cache 9\ntotal_inactive_file {cache}\n",
    }


V2 = {"proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"}


def v1_mounts(top="/"):
    mounts = [("memory", "memory"), ("cpu,cpuacct", "cpu,cpuacct"), ("systemd", "name=systemd")]
    lines = [
        f"3{number} 31 0:3{number} {top} /sys/fs/cgroup/{folder} rw shared:9 - cgroup cgroup rw,{options}"
        for number, (folder, options) in enumerate(mounts)
    ]
    return {"proc/self/mountinfo": "\n".join(["31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw", *lines, ""])}


def own(*lines):
    return {"proc/self/cgroup": "".join(f"{line}\n" for line in lines)}


# -- memory ---------------------------------------------------------------------------------------


def test_a_machine_without_groups_has_what_is_available(system):
    assert host.free_bytes(system(meminfo(8 * GIB))) == 8 * GIB


def test_a_system_that_does_not_tell(tmp_path):
    assert host.free_bytes(tmp_path) is None


def test_the_group_that_a_container_sees_as_the_root(system):
    root = system({**meminfo(64 * GIB), **V2, **own("0::/"), **v2(8 * GIB, 3 * GIB, 1 * GIB)})
    assert host.free_bytes(root) == 6 * GIB


def test_the_process_has_a_group_of_its_own(system):
    """As in a job of Slurm, or a service of systemd: the root of the hierarchy has no limit."""
    path = "system.slice/slurmstepd.scope/job_7/step_0"
    root = system(
        {
            **meminfo(500 * GIB),
            **V2,
            **own(f"0::/{path}"),
            **v2("max", 90 * GIB, path="system.slice"),
            **v2(16 * GIB, 2 * GIB, path=path),
        }
    )
    assert host.free_bytes(root) == 14 * GIB


def test_a_group_above_has_less_left(system):
    root = system(
        {
            **meminfo(500 * GIB),
            **V2,
            **own("0::/job/step"),
            **v2(16 * GIB, 15 * GIB, GIB, path="job"),
            **v2("max", 2 * GIB, path="job/step"),
        }
    )
    assert host.free_bytes(root) == 2 * GIB


def test_version_1(system):
    root = system(
        {
            **meminfo(500 * GIB),
            **v1_mounts(),
            **own("9:name=systemd:/", "4:memory:/slurm/uid_1/job_7", "2:cpu,cpuacct:/", "0::/"),
            **v1(2**63 - 4096, 400 * GIB),
            **v1(8 * GIB, 3 * GIB, GIB, path="slurm/uid_1/job_7"),
            **v1(12 * GIB, 3 * GIB, path="slurm/uid_1"),
        }
    )
    assert host.free_bytes(root) == 6 * GIB


def test_a_container_of_version_1_has_its_group_mounted_at_the_top(system):
    root = system(
        {**meminfo(500 * GIB), **v1_mounts("/docker/8a"), **own("4:memory:/docker/8a"), **v1(4 * GIB, GIB)}
    )
    assert host.free_bytes(root) == 3 * GIB


@pytest.mark.parametrize("path", ["/../../other", "/not/mounted/here"])
def test_a_path_outside_of_what_is_mounted(system, path):
    root = system({**meminfo(64 * GIB), **V2, **own(f"0::{path}"), **v2(8 * GIB, 2 * GIB)})
    assert host.free_bytes(root) == 6 * GIB


# -- cores ----------------------------------------------------------------------------------------


@pytest.fixture
def sixteen(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({}, 16),
        ({"job/step": "max 100000"}, 16),
        ({"job/step": "400000 100000"}, 4),
        ({"job/step": "150000 100000"}, 2),
        ({"job/step": "1000 100000"}, 1),
        ({"job/step": "max 100000", "job": "300000 100000"}, 3),
        ({"job/step": "600000 100000", "job": "300000 100000", "": "900000 100000"}, 3),
        ({"job/step": "9900000 100000"}, 16),
    ],
)
def test_quotas_along_the_path(system, sixteen, quotas, cores):
    files = {f"sys/fs/cgroup/{path}/cpu.max": f"{quota}\n" for path, quota in quotas.items()}
    root = system({**V2, **own("0::/job/step"), "sys/fs/cgroup/job/step/cgroup.procs": "", **files})
    assert host.count_cores(root) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 16), ("250000", 3), ("50000", 1)])
def test_quotas_of_version_1(system, sixteen, quota, cores):
    folder = "sys/fs/cgroup/cpu,cpuacct/docker/8a"
    root = system(
        {
            **v1_mounts(),
            **own("4:memory:/", "2:cpu,cpuacct:/docker/8a"),
            f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
            f"{folder}/cpu.cfs_period_us": "100000\n",
        }
    )
    assert host.count_cores(root) == cores


# -- the model of the processor ---------------------------------------------------------------------


def arm(*cores):
    fields = ("implementer", "architecture", "variant", "part", "revision")
    return "\n".join(
        f"processor\t: {number}\nBogoMIPS\t: 50.00\n"
        + "\n".join(f"CPU {field}\t: {value}" for field, value in zip(fields, core, strict=True))
        for number, core in enumerate(cores)
    )


NEOVERSE_N1 = ("0x41", "8", "0x3", "0xd0c", "1")
NEOVERSE_V2 = ("0x41", "8", "0x0", "0xd4f", "0")


def test_a_processor_with_a_name(system):
    root = system({"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9654\ncpu MHz\t: 1\n"})
    assert host.processor_model(root) == "AMD EPYC 9654"


def test_arm_processors_differ(system, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    model = host.processor_model(system({"proc/cpuinfo": arm(NEOVERSE_N1, NEOVERSE_N1)}))
    assert model == "aarch64 implementer 0x41 part 0xd0c variant 0x3 revision 1"
    assert model != host.processor_model(system({"proc/cpuinfo": arm(NEOVERSE_V2)}))


def test_arm_cores_of_two_kinds_in_any_order(system):
    one = host.processor_model(system({"proc/cpuinfo": arm(NEOVERSE_N1, NEOVERSE_V2)}))
    other = host.processor_model(system({"proc/cpuinfo": arm(NEOVERSE_V2, NEOVERSE_N1)}))
    assert one == other
    assert "0xd0c" in one
    assert "0xd4f" in one


def test_an_arm_processor_with_a_name_that_many_have(system):
    names = [
        host.processor_model(system({"proc/cpuinfo": f"model name\t: ARMv8 Processor\n{arm(core)}"}))
        for core in (NEOVERSE_N1, NEOVERSE_V2)
    ]
    assert names[0] != names[1]


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               60000.
Pages active:                            400000.
Pages inactive:                          300000.
Pages speculative:                         5000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                           2000.
"Translation faults":                 900000000.
Pages copy-on-write:                   30000000.
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_mac_says_its_chip_and_its_memory(tmp_path):
    """As its programs print it."""
    asked = '[ "$*" = "-n machdep.cpu.brand_string" ] && echo "Apple M4 Pro"'
    program(tmp_path / "usr/sbin/sysctl", asked)
    program(tmp_path / "usr/bin/vm_stat", f"cat <<'END'\n{VM_STAT}END")
    assert host.processor_model(tmp_path) == "Apple M4 Pro"
    assert host.free_bytes(tmp_path) == 16384 * 365_000


def test_a_mac_whose_programs_fail(tmp_path):
    for name in ("usr/sbin/sysctl", "usr/bin/vm_stat"):
        program(tmp_path / name, "echo no; exit 1")
    assert host.processor_model(tmp_path) == host.processor_model(tmp_path / "none")
    assert host.free_bytes(tmp_path) is None
