//! Probe report: a line for each step as it ends, or one JSON object at the end.
//!
//! Owns the format only; names, texts and numbers come from the steps.
//!
//! 1. Text from a peer cannot control the terminal.
//! 2. Colour and a rewritten progress line appear only on a terminal.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::clock;
use super::diagnosis::Diagnosis;

/// The capabilities of the output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// The output may be coloured.
    pub has_colour: bool,
    /// A line can be rewritten, so progress is shown.
    pub is_live: bool,
}

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line for each step.
    Lines,
    /// A line for each step that failed.
    Failures,
    /// One JSON object.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

/// The result of a step that succeeded.
#[derive(Debug)]
pub(super) struct Finding {
    found: String,
    /// The step succeeded, but this needs attention.
    warning: Option<String>,
    figures: Map<String, Value>,
}

impl Finding {
    pub(super) fn new(found: impl Into<String>) -> Self {
        Self { found: found.into(), warning: None, figures: Map::new() }
    }

    pub(super) fn warn(self, warning: impl Into<String>) -> Self {
        Self { warning: Some(warning.into()), ..self }
    }

    /// Adds a value to the JSON object.
    pub(super) fn with(mut self, name: &str, figure: impl Into<Value>) -> Self {
        self.figures.insert(name.into(), figure.into());
        self
    }
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    outcome: Outcome,
    ms: f64,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    #[serde(flatten)]
    figures: Map<String, Value>,
}

pub(super) struct ProbeReport<'a> {
    out: &'a mut dyn Write,
    style: Style,
    form: Form,
    steps: Vec<Step>,
}

impl<'a> ProbeReport<'a> {
    pub(super) fn new(out: &'a mut dyn Write, form: Form, style: Style) -> Self {
        Self { out, style, form, steps: Vec::new() }
    }

    /// Runs a step and reports its outcome; returns its value unless it failed.
    pub(super) fn step<T>(
        &mut self,
        name: &'static str,
        step: impl FnOnce(&mut Self) -> Result<(T, Finding), Diagnosis>,
    ) -> Option<T> {
        self.progress(name, "…");
        let began = clock::now();
        let result = step(self);
        let ms = millis(began.elapsed());
        let (given, step) = match result {
            Ok((given, Finding { found, warning, figures })) => {
                let outcome = if warning.is_some() { Outcome::Warning } else { Outcome::Ok };
                (Some(given), Step { name, outcome, ms, found, advice: warning, figures })
            }
            Err(Diagnosis { found, advice }) => {
                let figures = Map::new();
                (None, Step { name, outcome: Outcome::Failed, ms, found, advice, figures })
            }
        };
        self.print(&step);
        self.steps.push(step);
        given
    }

    /// Shows the progress of a step.
    pub(super) fn progress(&mut self, name: &str, what: &str) {
        if self.style.is_live && self.form == Form::Lines {
            self.say(&format!("\r\x1b[K         {name:<16} {what}"));
        }
    }

    /// Ends the report; returns whether no step failed.
    pub(super) fn end(mut self, url: &str) -> bool {
        let failed: Vec<_> = self
            .steps
            .iter()
            .filter(|step| step.outcome == Outcome::Failed)
            .map(|step| step.name)
            .collect();
        let warnings = self.steps.iter().filter(|step| step.outcome == Outcome::Warning).count();
        let is_well = failed.is_empty();
        match self.form {
            Form::Failures => {}
            Form::Json => {
                let steps = &self.steps;
                let object = serde_json::json!({ "url": url, "ok": is_well, "steps": steps });
                self.say(&format!("{object}\n"));
            }
            Form::Lines if !is_well => {
                let failed = failed.join(", ");
                self.say(&format!("probe of {url} failed at: {failed}\n"));
            }
            Form::Lines if warnings > 0 => self.say(&format!("passed, with warnings: {url}\n")),
            Form::Lines => self.say(&format!("all well: {url}\n")),
        }
        is_well
    }

    fn print(&mut self, step: &Step) {
        let (word, colour) = match step.outcome {
            Outcome::Ok => ("ok", "32"),
            Outcome::Warning => ("warning", "33"),
            Outcome::Failed => ("FAILED", "31"),
        };
        match self.form {
            Form::Json => return,
            Form::Failures if step.outcome != Outcome::Failed => return,
            Form::Lines | Form::Failures => {}
        }
        let start = if self.style.is_live { "\r\x1b[K" } else { "" };
        let word = format!("{word:<8}");
        let word =
            if self.style.has_colour { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
        let mut line = format!(
            "{start}{word} {:<16} {} ({:.1} ms)\n",
            step.name,
            visible(&step.found),
            step.ms
        );
        if let Some(advice) = &step.advice {
            for part in wrapped(&visible(advice), 72) {
                line.push_str(&format!("         {part}\n"));
            }
        }
        self.say(&line);
    }

    fn say(&mut self, text: &str) {
        // A write error is ignored; the exit code still tells the outcome.
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }
}

/// The time in milliseconds, rounded to the microsecond.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// `text` without control characters. Most text from peers is escaped before, but error
/// messages may quote some.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Lines of at most `width` characters; a longer word has its own line.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is one from the start");
        if last.is_empty() {
            *last = word.into();
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.into());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(form: Form, style: Style) -> (bool, String) {
        let mut out = Vec::new();
        let mut report = ProbeReport::new(&mut out, form, style);
        report.step("one", |_| Ok(((), Finding::new("fine").with("days", 3))));
        report.step("two", |_| Ok(((), Finding::new("so-so").warn("see to it"))));
        report.step("three", |_| Err::<((), _), _>(Diagnosis::new("bad").advise("mend it")));
        let is_well = report.end("http://relay");
        (is_well, String::from_utf8(out).unwrap())
    }

    #[test]
    fn lines_show_each_outcome() {
        let (is_well, text) = reported(Form::Lines, Style::default());
        assert!(!is_well && !text.contains('\x1b'), "{text}");
        let starts = ["ok       one              fine (", "warning  two              so-so ("];
        let starts =
            starts.iter().chain(&["         see to it", "FAILED   three            bad ("]);
        for start in starts {
            assert!(text.lines().any(|line| line.starts_with(start)), "{start}\n{text}");
        }
        assert!(text.ends_with("probe of http://relay failed at: three\n"), "{text}");

        let (_, text) = reported(Form::Lines, Style { has_colour: true, is_live: true });
        assert!(text.contains("\x1b[31mFAILED  \x1b[0m three") && text.contains("\r\x1b[K"));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut out = Vec::new();
        let mut report = ProbeReport::new(&mut out, Form::Lines, Style::default());
        let bad = || Diagnosis::new("\x1b[2J\r\n").advise("\u{9b}2J");
        report.step("one", |_| Err::<((), _), _>(bad()));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn the_failures_form_prints_failed_steps_only() {
        let (_, text) = reported(Form::Failures, Style::default());
        assert!(text.starts_with("FAILED   three") && text.lines().count() == 2, "{text}");
    }

    #[test]
    fn json_is_one_object() {
        let style = Style { has_colour: true, is_live: true };
        let (_, text) = reported(Form::Json, style);
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["ok"], false);
        assert_eq!(object["steps"][0]["days"], 3);
        assert_eq!(object["steps"][1]["outcome"], "warning");
        assert_eq!(object["steps"][2]["advice"], "mend it");
    }

    #[test]
    fn words_are_wrapped() {
        assert_eq!(wrapped("one two three four", 9), ["one two", "three", "four"]);
        assert_eq!(wrapped("overlong-word x", 4), ["overlong-word", "x"]);
    }
}
