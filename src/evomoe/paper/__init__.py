"""The paper: its tables, its figures and the small study that fills the tables, a room each."""
