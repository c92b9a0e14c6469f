use coil_api::crd::AddressBlock;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch::{Receiver, Sender, channel},
    task::JoinSet,
};
use tracing::warn;

use super::Index;

/// Starts both watches. They end when the set is dropped.
pub(super) fn start(client: Client) -> (JoinSet<()>, Receiver<Index>) {
    let (sender, receiver) = channel(Index::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(follow::<AddressBlock>(
        Api::all(client.clone()),
        sender.clone(),
        Feed { reset: |i, all| i.reset_blocks(all), apply: Index::apply_block, delete: Index::delete_block },
    ));
    tasks.spawn(follow::<Node>(
        Api::all(client),
        sender,
        Feed { reset: |i, all| i.reset_nodes(all), apply: Index::apply_node, delete: Index::delete_node },
    ));
    (tasks, receiver)
}

/// How events of one kind go into the index.
struct Feed<K> {
    reset: fn(&mut Index, &[K]),
    apply: fn(&mut Index, &K),
    delete: fn(&mut Index, &str),
}

async fn follow<K>(api: Api<K>, index: Sender<Index>, feed: Feed<K>)
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut listed = Vec::new();
    // Heartbeats of nodes change nothing here: only a changed index wakes the sync.
    let change = |work: &dyn Fn(&mut Index)| {
        index.send_if_modified(|index| {
            let before = index.clone();
            work(index);
            *index != before
        });
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.push(object),
            Ok(watcher::Event::InitDone) => {
                change(&|index| (feed.reset)(index, &listed));
                listed = Vec::new();
            }
            Ok(watcher::Event::Apply(object)) => change(&|index| (feed.apply)(index, &object)),
            Ok(watcher::Event::Delete(object)) => change(&|index| (feed.delete)(index, &object.name_any())),
            Err(error) => warn!(kind = %K::kind(&()), %error, "watch interrupted, going on"),
        }
    }
}
