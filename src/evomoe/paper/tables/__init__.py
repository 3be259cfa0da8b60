"""The tables that are made of trained models, a file each: the paper's, then studies of our own.

A row is a recipe with the published numbers beside it. Needs neither torch nor transformers.
"""

from evomoe.paper.tables import (
    anyexperts,
    readings,
    stage3,
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
from evomoe.paper.tables.table import Table

_MODULES = (
    *(table_2, table_3, table_4, table_5, table_6, table_9, table_10),
    *(table_11, table_12, table_13, table_14, table_15, readings, stage3, anyexperts),
)
TABLES: dict[str, Table] = {module.TABLE.name: module.TABLE for module in _MODULES}
"""A row here makes a table: ``evomoe table NAME`` runs it."""
