//! Reading objects.

use bytes::Bytes;

use super::view;
use crate::backend::Backend;
use crate::http::negotiate::View;
use crate::registry::Resource;
use crate::selector::Selector;
use crate::status::Result;
use crate::store::Object;

/// One object.
pub(crate) fn get(
    backend: &Backend,
    resource: &Resource,
    namespace: &str,
    name: &str,
    view: View,
) -> Result<Bytes> {
    let object = backend.get(resource, namespace, name)?;
    Ok(view::object(resource, view, &object))
}

/// All objects that match, as one page.
pub(crate) fn list(
    backend: &Backend,
    resource: &Resource,
    namespace: Option<&str>,
    selector: &Selector,
    view: View,
) -> Bytes {
    let (objects, version) = backend.store.list(&resource.table, namespace);
    let everything = selector.is_everything();
    let matching = objects.iter().map(std::convert::AsRef::as_ref);
    let matching = matching.filter(|object: &&Object| everything || selector.matches(object.value()));
    view::list(resource, view, matching, version)
}
