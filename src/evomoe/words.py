"""Small words in messages."""


def counted(count: int, noun: str) -> str:
    """1, "record" -> "1 record"; 1200, "record" -> "1,200 records"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kind_of(value: object) -> str:
    """A value's type with its article: "a str", "an int"."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
