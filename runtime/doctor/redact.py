"""Takes secrets out of text before it leaves the machine."""

from __future__ import annotations

import re

HIDDEN = "[removed]"
# Names that hold secrets; tokenizer_dir, max_tokens, eos_token_id, key_file are none.
_SECRET_NAME = (
    r"[\w-]*(?:api[_-]?key|access[_-]?key|secret|token(?!iz|s|_id)|passw(?:or)?d|authorization|credential)"
    r"(?![\w-]*(?:file|path|dir))[\w-]*"
)
_PATTERNS = (
    # name: value and name=value, quoted or not; the name stays.
    (
        re.compile(rf"(?i)(\b{_SECRET_NAME}['\"]?\s*[:=]\s*)(['\"]?)(?:Bearer\s+)?[^\s'\",;&]{{6,}}\2"),
        rf"\1\2{HIDDEN}\2",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(\w+://)[^/\s:@]+:[^/\s@]+@"), rf"\1{HIDDEN}@"),
    # What is a secret by its shape: keys of ew, Hugging Face, OpenAI, NVIDIA, GitHub, GitLab, Slack, AWS.
    (re.compile(r"\bew-[A-Za-z0-9_-]{32,}"), HIDDEN),
    (re.compile(r"\b(?:hf_|sk-|nvapi-|ghp_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_-]{10,}"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.S), HIDDEN),
)


def redact(text: str, home: str = "") -> str:
    """`text` without keys, tokens, passwords and the user's home folder."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text.replace(home, "~") if len(home) > 1 else text
