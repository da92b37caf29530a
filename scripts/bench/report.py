"""What was measured, as tables: plain for a terminal, Markdown for a document."""

import re
import statistics
import textwrap


class Section:
    """The figures of one sub-command."""

    def __init__(self, name, options=""):
        self.name, self.title, self.how = name, name, ""
        self.command = f"scripts/bench.sh {name}{options}"
        self.columns, self.rows = [], []
        self.verdicts = []
        self.failures = []

    def about(self, title, how):
        self.title, self.how = title, how

    def table(self, *columns):
        self.columns = columns

    def row(self, *cells):
        self.rows.append([str(cell) for cell in cells])

    def verdict(self, figure, measured, target, met):
        """A figure beside its target. A missed target is no failure: timings move."""
        self.verdicts.append([figure, measured, target, "met" if met else "missed"])

    def at_most(self, figure, measured, most, form="{:.2f}"):
        median, text = summary(measured, form)
        self.verdict(figure, text, "≤ " + form.format(most), median <= most)

    def at_least(self, figure, measured, least, form="{:.2f}"):
        median, text = summary(measured, form)
        self.verdict(figure, text, "≥ " + form.format(least), median >= least)

    def fail(self, text):
        self.failures.append(text)

    def plain(self):
        lines = [f"{self.name}: {self.title}", ""]
        for heads, rows in self.tables():
            widths = [max(map(len, column)) for column in zip(heads, *rows)]
            for row in [heads, *rows]:
                first, *others = [(cell, width) for cell, width in zip(row, widths)]
                line = first[0].ljust(first[1])
                lines.append("  " + "  ".join([line, *(cell.rjust(width) for cell, width in others)]))
            lines.append("")
        return "\n".join(lines + [f"  FAILED: {text}" for text in self.failures])

    def markdown(self, when):
        title = self.title[0].upper() + self.title[1:]
        lines = [f"### {title}", "", textwrap.fill(self.how, 100), ""]
        lines += [textwrap.fill(f"`{self.command}`, {when}", 100, break_on_hyphens=False), ""]
        for heads, rows in self.tables():
            lines.append("| " + " | ".join(heads) + " |")
            lines.append("| --- |" + " ---: |" * (len(heads) - 1))
            lines += ["| " + " | ".join(row) + " |" for row in rows]
            lines.append("")
        lines += [f"**Failed:** {text}" for text in self.failures]
        return "\n".join(lines).rstrip() + "\n"

    def tables(self):
        found = []
        if self.rows:
            found.append((list(self.columns), self.rows))
        if self.verdicts:
            found.append((["figure", "measured", "target", ""], self.verdicts))
        return found


def summary(measured, form):
    """One number, or of one for each round the median, and as text where the middle half of them lies."""
    if not isinstance(measured, list):
        return measured, form.format(measured)
    median = statistics.median(measured)
    if len(measured) < 4:
        return median, form.format(median)
    low, _, high = statistics.quantiles(measured, n=4, method="inclusive")
    return median, f"{form.format(median)} ({form.format(low)} to {form.format(high)})"


def update(document, sections, when):
    """Puts each section between its two marks in the document."""
    text = document.read_text()
    for section in sections:
        begin, end = f"<!-- {section.name} -->\n", f"<!-- /{section.name} -->\n"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        new = begin + section.markdown(when) + end
        text, places = pattern.subn(lambda _, new=new: new, text)
        if places != 1:
            raise ValueError(f"{document.name} has {places} places for '{section.name}', not one")
    document.write_text(text)
