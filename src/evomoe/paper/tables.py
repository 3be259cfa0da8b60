"""All tables that are made of trained models."""

from evomoe.paper import (
    table_2,
    table_3,
    table_4,
    table_5,
    table_6,
    table_9,
    table_10,
    table_11,
    table_12,
    table_13,
    table_14,
    table_15,
)
from evomoe.paper.table import Table

_MODULES = (
    *(table_2, table_3, table_4, table_5, table_6, table_9, table_10),
    *(table_11, table_12, table_13, table_14, table_15),
)
TABLES: dict[int, Table] = {module.TABLE.number: module.TABLE for module in _MODULES}
