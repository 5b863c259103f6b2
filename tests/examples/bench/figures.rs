//! What was found: medians, ratios, a table for people and JSON for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::rows::{Measure, ROWS, Row, Sample};

/// The samples of every row and server.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<(usize, &'static str), Vec<Sample>>);

/// The middle one; of an even number the mean of the two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
    let lower = values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN);
    f64::midpoint(upper, lower)
}

/// The least and the most.
pub fn extremes(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

/// Three digits, whatever the size.
pub fn short(value: f64) -> String {
    match value {
        value if !value.is_finite() => "-".to_owned(),
        value if value < 1.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

impl Figures {
    pub fn add(&mut self, row: usize, server: &'static str, sample: Sample) {
        self.0.entry((row, server)).or_default().push(sample);
    }

    fn values(&self, row: usize, server: &'static str, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.0.get(&(row, server)).into_iter().flatten().map(of).collect()
    }

    fn median(&self, row: usize, server: &'static str, of: fn(&Sample) -> f64) -> f64 {
        median(self.values(row, server, of))
    }

    /// How many times the best other we are, by the medians; not a number where nobody else does it.
    fn ratio(&self, number: usize, row: &Row) -> f64 {
        let others = row.servers.iter().filter(|name| **name != "Portcullis");
        let medians = others.map(|name| self.median(number, name, |sample| sample.value));
        let best = medians.fold(f64::NAN, f64::max);
        self.median(number, "Portcullis", |sample| sample.value) / best
    }

    /// For people, and for docs/performance.md.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| what | others (median) | Portcullis (median; least to most) | ratio | wanted | \
             CPU s/GiB: others, Portcullis | peak MiB: others, Portcullis |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for (number, row) in ROWS.iter().enumerate() {
            let ours = self.values(number, "Portcullis", |sample| sample.value);
            if ours.is_empty() {
                continue;
            }
            let each = |of: fn(&Sample) -> f64| {
                let others = row.servers.iter().filter(|name| **name != "Portcullis");
                let others: Vec<_> = others
                    .map(|name| format!("{name} {}", short(self.median(number, name, of))))
                    .collect();
                if others.is_empty() { "-".to_owned() } else { others.join(", ") }
            };
            let ratio = self.ratio(number, row);
            let wanted = match row.target {
                None => String::new(),
                // By the two digits that are shown.
                Some(target) if (ratio * 100.0).round() >= target * 100.0 => {
                    format!("{target}: met")
                }
                Some(target) => format!("{target}: **not met**"),
            };
            let lost = if (ratio * 100.0).round() < 100.0 { " **lost**" } else { "" };
            let (least, most) = extremes(&ours);
            let cpu = match row.unit() {
                "MiB/s" => {
                    let sent = match row.what {
                        Measure::Relay { .. } => format!(
                            "; sent by the image's server: {}, {} MiB",
                            each(|sample| sample.sent),
                            short(self.median(number, "Portcullis", |sample| sample.sent))
                        ),
                        _ => String::new(),
                    };
                    format!(
                        "{}, {}{sent}",
                        each(|sample| sample.cpu),
                        short(self.median(number, "Portcullis", |sample| sample.cpu))
                    )
                }
                _ => format!(
                    "in all {}, {} ms; the last after: {}, {} ms",
                    each(|sample| sample.cpu * 1000.0),
                    short(self.median(number, "Portcullis", |sample| sample.cpu * 1000.0)),
                    each(|sample| sample.last),
                    short(self.median(number, "Portcullis", |sample| sample.last))
                ),
            };
            text += &format!(
                "| {} | {} {} | {} ({} to {}) | {}{lost} | {wanted} | {cpu} | {}, {} |\n",
                row.title(),
                each(|sample| sample.value),
                row.unit(),
                short(median(ours.iter().copied())),
                short(least),
                short(most),
                if ratio.is_nan() { "-".to_owned() } else { format!("{ratio:.2}") },
                each(|sample| sample.peak),
                short(self.median(number, "Portcullis", |sample| sample.peak)),
            );
        }
        text
    }

    /// Every sample.
    pub fn json(&self) -> Value {
        let rows = ROWS.iter().enumerate().map(|(number, row)| {
            let servers: serde_json::Map<String, Value> = row
                .servers
                .iter()
                .map(|name| {
                    let of = |part| self.values(number, name, part);
                    let value = json!({
                        "values": of(|sample| sample.value),
                        "cpu_seconds": of(|sample| sample.cpu),
                        "peak_mib": of(|sample| sample.peak),
                        "last_ms": of(|sample| sample.last),
                        "sent_by_the_images_server_mib": of(|sample| sample.sent),
                    });
                    ((*name).to_owned(), value)
                })
                .collect();
            json!({
                "row": row.title(), "unit": row.unit(), "servers": servers,
                "ratio": self.ratio(number, row), "wanted": row.target,
            })
        });
        Value::Array(rows.collect())
    }
}
