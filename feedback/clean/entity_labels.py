"""What the labels of a token-classification model stand for: names of people, postal addresses, or nothing replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.errors import UserError
from raylign.conf.yaml_text import load_mapping

NAME, ADDRESS = "NAME", "ADDRESS"
KINDS = (NAME, ADDRESS)
SETTING = "privacy.names_model"
_LEFT = "none"  # in the setting: a label that is left alone

_NAMES = frozenset(
    ("PER", "PERS", "PERSON", "PERSONNAME", "NAME", "FULLNAME", "FIRSTNAME", "MIDDLENAME", "LASTNAME", "GIVENNAME",
     "SURNAME", "FAMILYNAME", "PATIENT", "DOCTOR", "NAMESTUDENT", "PRIVATEPERSON")
)  # fmt: skip
_ADDRESSES = frozenset(
    ("ADDRESS", "ADDR", "FULLADDRESS", "STREETADDRESS", "STREET", "STREETNAME", "BUILDING", "BUILDINGNUM",
     "BUILDINGNUMBER", "SECADDRESS", "SECONDARYADDRESS", "ZIP", "ZIPCODE", "POSTCODE", "POSTALCODE", "PRIVATEADDRESS")
)  # fmt: skip
_PREFIX = re.compile(r"^([BIESLU])[-_]")


@dataclass(frozen=True, slots=True)
class Label:
    """What a model's label says of a token."""

    kind: str | None  # one of KINDS; None: nothing that is replaced
    begins: bool  # a new name, even right after another


def parse_labels(text: str) -> dict[str, str | None]:
    """`{LOC: ADDRESS, TITLE: none}`: what labels without their prefix stand for. Raises ValueError, a sentence."""
    expected = f"labels and {', '.join(KINDS)} or {_LEFT}, as in {{LOC: ADDRESS, TITLE: none}}"
    content = load_mapping(text, expected)
    if not all(kind in (*KINDS, _LEFT) for kind in content.values()):
        raise ValueError(f"expected {expected}")
    return {label: None if kind == _LEFT else f"{kind}" for label, kind in content.items()}


def label_of(name: str, told: Mapping[str, str | None]) -> Label:
    """A model's label by its name: B-PER begins a name, I-PER goes on with one, S-PER is one alone."""
    prefix = _PREFIX.match(name)
    plain = name[prefix.end() :] if prefix else name
    begins = prefix is not None and prefix[1] in "BSU"
    if plain in told:
        return Label(told[plain], begins)
    letters = re.sub(r"[^A-Z]", "", plain.upper())
    return Label(NAME if letters in _NAMES else ADDRESS if letters in _ADDRESSES else None, begins)


def labels_in(folder: Path, told: Mapping[str, str | None]) -> list[Label]:
    """What each label of a model folder stands for, by its config alone. Raises UserError."""
    names = label_names(folder)
    plain = {name.split("-", 1)[-1].split("_", 1)[-1]: name for name in names} | {name: name for name in names}
    plain |= {name[2:]: name for name in names}
    if unknown := [label for label in told if label not in plain]:
        raise UserError(
            f"privacy.names_labels: `{unknown[0]}` is none of the model's labels: {', '.join(names)[:300]}."
        )
    labels = [label_of(name, told) for name in names]
    if not any(label.kind for label in labels):
        raise UserError(
            f"{SETTING}={folder}: none of its labels is known for names or addresses ({', '.join(names)[:200]}); say "
            "which are, as in privacy.names_labels='{LABEL_1: NAME}'."
        )
    return labels


def label_names(folder: Path) -> list[str]:
    """The labels of a model folder in the order of its outputs. Raises UserError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = config.get("architectures") or []
        names = [config["id2label"][f"{number}"] for number in range(len(config["id2label"]))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{SETTING}={folder}: not the folder of a token-classification model (config.json with id2label)."
        ) from error
    if not any(f"{name}".endswith("ForTokenClassification") for name in architectures):
        raise UserError(
            f"{SETTING}={folder}: config.json names {', '.join(map(str, architectures)) or 'no architecture'}, none "
            "that labels tokens (...ForTokenClassification)."
        )
    return [f"{name}" for name in names]
