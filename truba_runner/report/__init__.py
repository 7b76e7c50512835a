"""A report on a run, search or sweep as one self-contained HTML file."""
