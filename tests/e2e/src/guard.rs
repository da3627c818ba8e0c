//! What of a cluster is somebody else's: the suite takes its definition of KvClusters, and with it every KvCluster,
//! away from the cluster that it is given, so it looks first and refuses when it cannot see. Deletes nothing.

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::core::{ObjectList, PartialObjectMeta};
use kv_operator::crd::KvCluster;

use crate::kube::{Kube, LABEL};
use crate::operator;

/// Err: why nothing of this cluster may be deleted.
pub(crate) async fn refuse_others(kube: &Kube) -> Result<(), String> {
    let namespaces: Api<Namespace> = Api::all(kube.client.clone());
    let namespaces = namespaces.list(&ListParams::default()).await.map_err(|error| unseen(&error))?;
    let is_ours = |namespace: &&Namespace| namespace.labels().contains_key(LABEL);
    let ours: Vec<String> = namespaces.iter().filter(is_ours).map(ResourceExt::name_any).collect();
    if namespaces.iter().any(|found| found.name_any() == operator::NAMESPACE && !is_ours(&found)) {
        return Err(format!("somebody else uses namespace {} of this cluster", operator::NAMESPACE));
    }
    let clusters: Api<KvCluster> = Api::all(kube.client.clone());
    let others = others(clusters.list_metadata(&ListParams::default()).await, &ours)?;
    if others.is_empty() { Ok(()) } else { Err(format!("somebody else has KvClusters here: {}", others.join(", "))) }
}

type Listed = kube::Result<ObjectList<PartialObjectMeta<KvCluster>>>;

/// The KvClusters in other namespaces than these. Only a cluster that knows no such kind holds none for sure.
fn others(listed: Listed, ours: &[String]) -> Result<Vec<String>, String> {
    let found = match listed {
        Ok(found) => found.items,
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(unseen(&error)),
    };
    let named = found.iter().map(|cluster| (cluster.namespace().unwrap_or_default(), cluster.name_any()));
    let others = named.filter(|(namespace, _)| !ours.contains(namespace));
    Ok(others.map(|(namespace, name)| format!("{namespace}/{name}")).collect())
}

fn unseen(error: &kube::Error) -> String {
    format!("whether this cluster holds somebody else's KvClusters cannot be seen: {error}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube::from_json;

    fn refused(code: u16) -> Listed {
        let status = json!({"kind": "Status", "apiVersion": "v1", "code": code, "message": "no", "reason": "No"});
        Err(kube::Error::Api(Box::new(from_json(status))))
    }

    fn held(namespaces: &[&str]) -> Listed {
        let items: Vec<_> =
            namespaces.iter().map(|of| json!({"metadata": {"namespace": of, "name": "demo"}})).collect();
        Ok(from_json(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items,
        })))
    }

    #[test]
    fn kv_clusters_in_namespaces_that_are_not_the_suites_are_named() {
        let ours = ["e2e-idle".to_owned()];
        assert_eq!(others(held(&["e2e-idle", "shop"]), &ours), Ok(vec!["shop/demo".to_owned()]));
        assert_eq!(others(held(&["e2e-idle"]), &ours), Ok(Vec::new()));
    }

    #[test]
    fn only_a_kind_that_is_not_known_counts_as_none() {
        assert_eq!(others(refused(404), &[]), Ok(Vec::new()));
        for code in [401, 403, 500, 504] {
            assert!(others(refused(code), &[]).is_err_and(|why| why.contains("cannot be seen")), "{code}");
        }
    }
}
