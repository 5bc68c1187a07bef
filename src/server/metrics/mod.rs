//! What is counted, as others read it: Prometheus, and the statistics page.

pub(crate) mod exporter;
pub(crate) mod statistics;
