//! Tables whose columns sort, and trees: tables whose entries have depths.

use super::escape;

/// A column's name, and whether it holds numbers.
#[derive(Clone, Debug)]
pub struct Column {
    name: String,
    is_number: bool,
}

impl Column {
    /// A column of words.
    pub fn text(name: &str) -> Column {
        Column { name: name.to_owned(), is_number: false }
    }

    /// A column of numbers: to the right, the largest first when sorted.
    pub fn number(name: &str) -> Column {
        Column { name: name.to_owned(), is_number: true }
    }
}

/// What one field shows, and what it is sorted by.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    shown: String,
    value: Option<f64>,
    /// Length of a bar behind the text, from 0 to 1.
    share: Option<f64>,
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Cell {
        Cell { shown: text.into(), value: None, share: None }
    }

    /// A number in the form that people read.
    pub fn number(value: f64, shown: impl Into<String>) -> Cell {
        Cell { shown: shown.into(), value: Some(value), share: None }
    }

    /// Nothing to show.
    pub fn none() -> Cell {
        Cell::text("")
    }

    /// The same with a bar behind it, `share` of the field long.
    #[must_use]
    pub fn with_bar(self, share: f64) -> Cell {
        Cell { share: share.is_finite().then(|| share.clamp(0.0, 1.0)), ..self }
    }

    fn html(&self, column: Option<&Column>) -> String {
        let class = if column.is_some_and(|c| c.is_number) { " class=\"n\"" } else { "" };
        // Numbers that are none sort last.
        let value = self.value.filter(|v| v.is_finite()).map_or(String::new(), |v| format!(" data-v=\"{v:e}\""));
        let bar = self.share.map_or(String::new(), |s| format!(" style=\"--bar:{:.1}%\"", 100.0 * s));
        format!("<td{class}{value}{bar}>{}</td>", escape(&self.shown))
    }
}

/// One row of a table.
#[derive(Clone, Debug)]
pub struct Entry {
    cells: Vec<Cell>,
    depth: usize,
    is_folded: bool,
}

impl Entry {
    /// A row of a plain table, or a root of a tree.
    pub fn new(cells: impl Into<Vec<Cell>>) -> Entry {
        Entry { cells: cells.into(), depth: 0, is_folded: false }
    }

    /// The same row, so far below the root; it belongs to the nearest row above that is less deep.
    #[must_use]
    pub fn at_depth(self, depth: usize) -> Entry {
        Entry { depth, ..self }
    }

    /// The same row, with what is below it hidden until a reader asks.
    #[must_use]
    pub fn folded(self) -> Entry {
        Entry { is_folded: true, ..self }
    }
}

/// Rows under named columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    entries: Vec<Entry>,
}

impl Table {
    /// No rows yet.
    pub fn new(columns: impl Into<Vec<Column>>) -> Table {
        Table { columns: columns.into(), entries: Vec::new() }
    }

    /// The same with one more row.
    #[must_use]
    pub fn with(mut self, entry: Entry) -> Table {
        self.push(entry);
        self
    }

    /// One more row.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub(super) fn html(&self) -> String {
        let head = self.columns.iter().map(|c| {
            let class = if c.is_number { " class=\"n\"" } else { "" };
            format!("<th{class} tabindex=\"0\">{}</th>", escape(&c.name))
        });
        let rows = self.entries.iter().map(|e| {
            let cells: String = e.cells.iter().enumerate().map(|(i, c)| c.html(self.columns.get(i))).collect();
            let folded = if e.is_folded { " data-folded" } else { "" };
            format!("<tr data-depth=\"{0}\" style=\"--depth:{0}\"{folded}>{cells}</tr>\n", e.depth)
        });
        let kind = if self.entries.iter().any(|e| e.depth > 0) { " class=\"tree\"" } else { "" };
        format!(
            "<div class=\"wide\"><table{kind}>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table></div>\n",
            head.collect::<String>(),
            rows.collect::<String>()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_what_they_sort_by_and_others_carry_nothing() {
        let table = Table::new([Column::text("room"), Column::number("time")])
            .with(Entry::new([Cell::text("gelu"), Cell::number(2.5e-3, "2.50 ms").with_bar(0.5)]).folded())
            .with(Entry::new([Cell::text("add"), Cell::number(f64::NAN, "?").with_bar(f64::NAN)]).at_depth(1));
        let html = table.html();
        assert!(html.contains("<td class=\"n\" data-v=\"2.5e-3\" style=\"--bar:50.0%\">2.50 ms</td>"), "{html}");
        assert!(html.contains("<td class=\"n\">?</td>") && html.contains("class=\"tree\""), "{html}");
        assert!(html.contains("<tr data-depth=\"0\" style=\"--depth:0\" data-folded>"));
    }
}
