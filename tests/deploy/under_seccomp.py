"""Runs a program under a seccomp profile in the format of container runtimes.

    under_seccomp.py [--without NAME]... PROFILE PROGRAM ARGUMENT...

For Debian's Python with python3-seccomp. `--without` takes a call off the profile's lists. As runc
does, names that this kernel's architecture does not have are passed over.
"""

import json
import os
import sys

import seccomp

ACTIONS = {
    "SCMP_ACT_ALLOW": lambda _: seccomp.ALLOW,
    "SCMP_ACT_ERRNO": lambda number: seccomp.ERRNO(number),
}
COMPARISONS = {
    "SCMP_CMP_EQ": lambda it: (seccomp.EQ, it["value"]),
    # Mask first, then what has to be left of it.
    "SCMP_CMP_MASKED_EQ": lambda it: (seccomp.MASKED_EQ, it["value"], it["valueTwo"]),
}


def main(arguments):
    without = set()
    while arguments[0] == "--without":
        without.add(arguments[1])
        arguments = arguments[2:]
    with open(arguments[0], encoding="utf-8") as file:
        profile = json.load(file)
    load(profile, without)
    os.execv(arguments[1], arguments[1:])


def load(profile, without):
    default = profile["defaultErrnoRet"]
    rules = seccomp.SyscallFilter(ACTIONS[profile["defaultAction"]](default))
    for entry in profile["syscalls"]:
        action = ACTIONS[entry["action"]](entry.get("errnoRet", default))
        conditions = [
            seccomp.Arg(it["index"], *COMPARISONS[it["op"]](it)) for it in entry.get("args", [])
        ]
        for name in set(entry["names"]) - without:
            if known(name):
                rules.add_rule_exactly(action, name, *conditions)
    rules.load()


def known(name):
    return seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0


main(sys.argv[1:])
