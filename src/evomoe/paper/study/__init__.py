"""The study in small that fills the tables: which trainings and scorings a row takes, how they run, what they found."""
