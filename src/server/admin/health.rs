//! Health: `/healthz` as the metrics listener answers it, with what `upgrade` needs.
//!
//! Owns the fields beside those of the public listeners. The process is named so that it can
//! be sent a signal, with its process id namespace: in another the number is another process.

use std::fs;
use std::process;

use serde::Serialize;

use crate::protocol::response::{self, Date, Health};
use crate::server::messages::handover_stats::HandoverStats;

#[derive(Serialize)]
struct OperatorsHealth<'a> {
    #[serde(flatten)]
    health: &'a Health,
    pid: u32,
    /// `pid:[4026531836]`; `None`: it cannot be read.
    pid_namespace: Option<String>,
    handovers: Handovers<'a>,
}

#[derive(Serialize)]
struct Handovers<'a> {
    running: bool,
    done: u64,
    refused: u64,
    last_done: Option<Done<'a>>,
    last_refusal: Option<Refusal<'a>>,
}

#[derive(Serialize)]
struct Done<'a> {
    from: &'a str,
    connections: u64,
    dropped: u64,
    pause_ms: u64,
}

#[derive(Serialize)]
struct Refusal<'a> {
    cause: &'a str,
    err: &'a str,
}

/// The response.
pub(super) fn answer(
    health: &Health,
    stats: &HandoverStats,
    date: &Date,
    is_head: bool,
) -> Vec<u8> {
    let last_done = stats.last_done.as_ref().map(|done| Done {
        from: &done.from,
        connections: done.connections,
        dropped: done.dropped,
        pause_ms: done.pause.as_millis() as u64,
    });
    let last_refusal = stats.last_refusal.as_ref();
    let last_refusal = last_refusal.map(|it| Refusal { cause: &it.cause, err: &it.said });
    let namespace = fs::read_link("/proc/self/ns/pid").ok();
    let body = OperatorsHealth {
        health,
        pid: process::id(),
        pid_namespace: namespace.map(|it| it.to_string_lossy().into_owned()),
        handovers: Handovers {
            running: stats.is_running,
            done: stats.done,
            refused: stats.refused,
            last_done,
            last_refusal,
        },
    };
    let mut answer = Vec::new();
    response::health_with(health.status, &body, date, is_head, &mut answer);
    answer
}
