"""Whose suites are run: programs that use `subprocess`, as they are on PyPI, with their tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Package(NamedTuple):
    """One of them. Its source distribution has its tests.

    Attributes:
        needs: what its tests import; at the release that this one was made for.
        tests: what pytest is told to run: where processes are begun.
        tags: a repository of git is made of it, with these tags; its tests look into their own.
        differs: functions whose pass is not kept, by intention, and why.
    """

    name: str
    version: str
    sha256: str
    needs: tuple[str, ...]
    tests: tuple[str, ...]
    tags: tuple[str, ...] = ()
    differs: Mapping[str, str] = MappingProxyType({})


NOT_STOLEN = "the kernel keeps a status that SIGCHLD's SIG_IGN has thrown away; the test wants 0"


#: Those that take longest are first.
PACKAGES = (
    Package(
        "pytest-xdist",
        "3.8.0",
        "7e578125ec9bc6050861aa93f2d59f1d8d085595d6551c2c90b6f4fad8d3a9f1",
        ("filelock==4.2.12", "pytest==9.2.0"),
        (
            "testing/acceptance_test.py::TestDistEach",
            "testing/acceptance_test.py::TestDistribution",
            "testing/acceptance_test.py::TestNodeFailure",
            "testing/acceptance_test.py::test_crashing_item",
            "testing/test_remote.py",
            "testing/test_workermanage.py",
        ),
    ),
    Package(
        "virtualenv",
        "21.4.0",
        "8d401ab6ee040a7c679f2d3947faa9ed07edf284c0a4e7bda9edd2f34b1fe500",
        (
            "flaky==3.8.1",
            "pytest==9.2.0",
            "pytest-env==1.8.5",
            "pytest-mock==3.17.0",
            "pytest-timeout==2.4.0",
            "setuptools==80.9.0",
            "time-machine==3.6.0",
        ),
        (
            "tests/unit/activation",
            "tests/unit/config",
            "tests/unit/create/test_creator.py",
            "tests/unit/create/test_interpreters.py",
            "tests/unit/discovery",
        ),
    ),
    Package(
        "plumbum",
        "2.0.2",
        "233751d7819c9e6743ec1c2405927eb4fa52a284c7b894bd10e28106a9309a92",
        (
            "psutil==7.2.2",
            "pytest==8.4.2",
            "pytest-asyncio==1.5.0",
            "pytest-cov==7.1.0",
            "pytest-mock==3.17.0",
            "pytest-timeout==2.4.0",
        ),
        ("tests",),
    ),
    Package(
        "GitPython",
        "3.1.2",  # the last with its tests
        "864a47472548f3ba716ca202e034c1900f197c0fb3a08f641c20c3cafd15ed94",
        ("ddt==1.7.2", "pytest==9.2.0", "setuptools==80.9.0"),
        ("git/test", "--ignore=git/test/performance"),
        tags=("0.1.5", "0.1.6", "0.3.2.1"),
    ),
    Package(
        "anyio",
        "4.16.0",
        "59bb03251907983d1603d27c3087ddb1e93299ea2163adcdba37899a4fb12ffb",
        (
            "blockbuster==1.5.29",
            "psutil==7.2.2",
            "pytest==9.2.0",
            "pytest-mock==3.17.0",
            "pytest-timeout==2.4.0",
            "trio==0.35.0",
            "trustme==1.2.1",
            "truststore==0.10.5",
            "uvloop==0.23.0",
        ),
        ("tests/test_subprocesses.py", "tests/test_to_process.py"),
    ),
    Package(
        "trio",
        "0.35.0",
        "7efb295c78a0ecd1235c5759e620b5da564ca80d2efcb0055423588547248b96",
        ("pytest==9.2.0",),
        (
            "--pyargs",
            "trio._tests.test_subprocess",
            "-p",
            "trio._tests.pytest_plugin",
            "--run-slow",
        ),
        differs={
            "test_wait_reapable_fails": NOT_STOLEN,
            "test_wait_reapable_fails_no_pidfd": NOT_STOLEN,
        },
    ),
)
