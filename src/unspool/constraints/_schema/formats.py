"""The formats of JSON Schema as patterns of whole strings.

Every string that a pattern here accepts has the format by its specification. Some specifications allow more than
anybody writes (quoted and commented addresses of mail, for example); of those the usual form is taken, and no more.
"""

from __future__ import annotations

_YEAR = r"(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
# Years divisible by 4 and, if they end in 00, by 400.
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_IDN = r"[a-z0-9]{1,20}(?:-[a-z0-9]{1,20})?"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_H = r"[0-9A-Fa-f]{1,4}"
_IPV6 = "(?:" + "|".join(
    [rf"(?:{_H}:){{7}}{_H}", rf"(?:{_H}:){{6}}{_IPV4}", rf"::(?:{_H}:){{0,5}}{_IPV4}"]
    + [rf"(?:{_H}:){{{n}}}(?::{_H}){{1,{7 - n}}}" for n in range(1, 7)]
    + [rf"(?:{_H}:){{{n}}}(?::{_H}){{0,{4 - n}}}:{_IPV4}" for n in range(1, 5)]
    + [rf"(?:{_H}:){{1,7}}:", rf":(?::{_H}){{1,7}}", "::"]
) + ")"  # fmt: skip
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}"

_PERCENT = r"%[0-9A-Fa-f]{2}"
_PCHAR = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|{_PERCENT})"
_SEGMENT_NC = rf"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|{_PERCENT})+"
_TAIL = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_AUTHORITY = (
    rf"(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|{_PERCENT})*@)?"
    rf"(?:\[{_IPV6}\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|{_PERCENT})*)(?::[0-9]*)?"
)
_PATH = rf"(?:/{_PCHAR}*)*"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_URI = rf"{_SCHEME}:(?://{_AUTHORITY}{_PATH}|/(?:{_PCHAR}+{_PATH})?|{_PCHAR}+{_PATH})?{_TAIL}"
_RELATIVE = rf"(?://{_AUTHORITY}{_PATH}|/(?:{_PCHAR}+{_PATH})?|{_SEGMENT_NC}{_PATH})?{_TAIL}"
# RFC 3987 adds characters beyond ASCII, the private ones apart.
_UCS = r"[\u00a1-\u02af\u0370-\u06ff\u3041-\ud7a3]"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
_NAME = r"[A-Za-z][A-Za-z0-9_]*"
_TEMPLATE = rf"\{{[+#./;?&]?{_NAME}\*?(?:,{_NAME}\*?)*\}}"
_SPAN = r"(?:[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?)"
_CLOCK = r"T(?:[0-9]+S|[0-9]+M(?:[0-9]+S)?|[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?)"
# Atoms that may be repeated, and one level of groups of them.
_ITEM = r"(?:[A-Za-z0-9 _,:;=<>@#%&!~'\"`/-]|\.|\\[dDwWsS.tnr^$*+?()\[\]{}|\\/]|\[\^?[A-Za-z0-9_]+(?:-)?\])[*+?]?"

_BODIES = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}[Tt]{_TIME}",
    "duration": rf"P(?:[0-9]+W|{_SPAN}(?:{_CLOCK})?|{_CLOCK})",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": rf"{_IDN}(?:\.{_IDN}){{0,9}}",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": _URI,
    "uri-reference": rf"(?:{_URI}|{_RELATIVE})",
    "iri": _URI.replace("[A-Za-z0-9._~!$&'()*+,;=:@-]", f"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|{_UCS})"),
    "iri-reference": rf"(?:{_URI}|{_RELATIVE})".replace(
        "[A-Za-z0-9._~!$&'()*+,;=:@-]", f"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|{_UCS})"
    ),
    "uuid": r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "uri-template": rf"(?:[A-Za-z0-9._~:/?#\[\]@!$&()*+,;=-]|{_PERCENT}|{_TEMPLATE})*",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
    "regex": rf"\^?(?:(?:{_ITEM})|\((?:\?:)?(?:{_ITEM})*(?:\|(?:{_ITEM})+)*\)[*+?]?)*\$?",
}

FORMATS: dict[str, str] = {name: f"^(?:{body})$" for name, body in _BODIES.items()}
"""By name. A format that is not here is no format of the specification: it says nothing about a value."""

LENGTHS = {"hostname": 253}
"""Formats that a length belongs to."""

INEXACT = frozenset({"email", "idn-email", "idn-hostname", "regex", "uri-template", "hostname", "iri", "iri-reference"})
"""Formats whose pattern leaves out some strings that have the format: what does *not* have it cannot be told by
them."""
