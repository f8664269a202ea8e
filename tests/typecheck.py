"""The type checker that the tests put on every function of the library: beartype, an int where a float is said is fine."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
