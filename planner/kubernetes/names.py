"""Names and label values of Kubernetes, made of names that people chose."""

from __future__ import annotations

import hashlib
import re

#: Longest name of a set: pods add a number or two to it, and a label holds 63 characters.
MOST_NAME = 50
#: What a label's value may be. Source: Kubernetes' reference of labels.
VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
#: Label of the pods that a plan of a deployment starts: the name of its instance.
DEPLOYMENT_LABEL = "gpuplan/deployment"
#: Label of nodes that are not known by their host's name: their name in the plan.
NODE_LABEL = "gpuplan/node"
#: Well-known labels of nodes. Source: Kubernetes' reference of labels.
REGION_LABEL, ZONE_LABEL, HOSTNAME_LABEL = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "kubernetes.io/hostname",
)


def label(text: str, most: int = MOST_NAME) -> str:
    """Lower-case letters, digits and dashes, a letter first; unlike names may become one."""
    made = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    made = made if made[:1].isalpha() else f"w-{made}"
    return made[:most].strip("-")


def label_value(text: str) -> str:
    """The text where it may be the value of a label, else something like it; unlike texts stay apart."""
    return text if VALUE.fullmatch(text) else f"{label(text)}-{digest(text)}"


def digest(*texts: str) -> str:
    """Six hexadecimal digits."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:6]
