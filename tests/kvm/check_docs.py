#!/usr/bin/env python3
"""Each row of the ioctl tables and each capability needs an entry in docs/kvm-api.md, and the other way round.

tests/kvm/check_docs.py [REPOSITORY]
"""
import pathlib
import re
import sys

top = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
doc = (top / "docs/kvm-api.md").read_text()
bad = []

sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", doc, re.S | re.M))
for source, section in [("system", "/dev/kvm"), ("vm", "A VM"), ("vcpu", "A vCPU")]:
    rows = set(re.findall(r"^    ROW\w*\((KVM_\w+)", (top / f"src/kvm/ioctl_{source}.c").read_text(), re.M))
    named = set()
    for line in sections[section].splitlines():
        if line.startswith("| KVM_"):
            named |= set(re.findall(r"KVM_\w+", line.split("|")[1]))
    bad += [f"{n}: no entry under '{section}' in docs/kvm-api.md" for n in sorted(rows - named)]
    bad += [f"{n}: docs/kvm-api.md has it under '{section}', ioctl_{source}.c does not" for n in sorted(named - rows)]

caps_c = (top / "src/kvm/capabilities.c").read_text()
caps = set(re.findall(r"^    CAP(?:_FN)?\((\w+),", caps_c, re.M))
offered = sections["Capabilities"].split("Not offered")[0].split(":", 1)[1]
named = set(re.findall(r"[A-Z][A-Z0-9_]{2,}", re.sub(r"\(.*?\)", "", offered)))
bad += [f"KVM_CAP_{n}: not in docs/kvm-api.md" for n in sorted(caps - named)]
bad += [f"KVM_CAP_{n}: docs/kvm-api.md offers it, capabilities.c does not" for n in sorted(named - caps)]

# a row's capability must be one that is offered
for source in ("system", "vm", "vcpu"):
    text = (top / f"src/kvm/ioctl_{source}.c").read_text()
    for cap in sorted(set(re.findall(r"KVM_CAP_(\w+)\)", text)) - caps):
        bad.append(f"KVM_CAP_{cap}: a row of ioctl_{source}.c needs it, capabilities.c says no")

print("\n".join(bad) if bad else "docs/kvm-api.md agrees with the tables")
sys.exit(bool(bad))
