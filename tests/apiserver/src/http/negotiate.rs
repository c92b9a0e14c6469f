//! What form of an answer the client accepts.

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Full,
    /// Rows with cells, for printing.
    Table(Include),
    /// Metadata alone.
    Metadata,
}

/// How much of the object a table row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    Metadata,
    Object,
    None,
}

/// The parameters of the first media type in `Accept` that this server can write. It
/// writes JSON alone; clients that prefer protobuf always name JSON as well.
fn accepted(headers: &HeaderMap) -> Vec<(String, String)> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for media in accept.split(',') {
        let mut parts = media.split(';').map(str::trim);
        if parts.next() != Some("application/json") {
            continue;
        }
        let pairs = parts.filter_map(|part| part.split_once('='));
        let pairs: Vec<(String, String)> =
            pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect();
        let known = pairs.iter().all(|(key, value)| {
            key != "as"
                || matches!(
                    value.as_str(),
                    "Table" | "PartialObjectMetadata" | "PartialObjectMetadataList" | "APIGroupDiscoveryList"
                )
        });
        let beta = pairs.iter().any(|(key, value)| key == "v" && value.contains("beta"));
        if known && !beta {
            return pairs;
        }
    }
    Vec::new()
}

fn accepted_as(headers: &HeaderMap) -> Option<String> {
    accepted(headers).into_iter().find(|(key, _)| key == "as").map(|(_, value)| value)
}

/// The view of objects; `include` is the query parameter `includeObject`.
pub(crate) fn view(headers: &HeaderMap, include: Option<&str>) -> View {
    match accepted_as(headers).as_deref() {
        Some("Table") => View::Table(match include {
            Some("Object") => Include::Object,
            Some("None") => Include::None,
            _ => Include::Metadata,
        }),
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") => View::Metadata,
        _ => View::Full,
    }
}

/// Whether discovery should answer in one document.
pub(crate) fn wants_aggregated_discovery(headers: &HeaderMap) -> bool {
    accepted_as(headers).as_deref() == Some("APIGroupDiscoveryList")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept: &'static str) -> View {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        view(&headers, None)
    }

    #[test]
    fn the_first_json_form_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(of(table), View::Table(Include::Metadata));
        assert_eq!(of("application/vnd.kubernetes.protobuf,application/json"), View::Full);
        assert_eq!(of("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json"), View::Full);
        assert_eq!(of("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"), View::Metadata);
        assert_eq!(of("*/*"), View::Full);
    }
}
