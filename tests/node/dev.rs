//! `kv-node dev`: the newcomer's first command.

use kv_tests::{Dev, Site, kill_pid, wait_until};
use serde_json::Value;

#[tokio::test]
async fn a_local_cluster_runs_survives_a_kill_and_continues_where_it_stopped() {
    let site = Site::new();
    let mut dev = Dev::start(&site);
    dev.wait_ready(3).await;
    assert_eq!(dev.put(0, "key6", r#"{"value":"myvalue"}"#).await, 200);
    for index in 0..3 {
        let expected = (200, r#"{"key":"key6","value":"myvalue","version":1}"#.to_owned());
        wait_until("every node shows it", 10, || async { dev.get(index, "/key/key6").await == expected }).await;
    }
    wait_until("the table is shown", 10, || async { dev.output().contains("Ctrl-C") }).await;
    let output = dev.output();
    for shown in ["leader", "follower-1", "follower-2", "curl", "kv-node", "serve"] {
        assert!(output.contains(shown), "{shown} is not shown:\n{output}");
    }
    for directory in ["data/leader", "data/followers/follower-1", "data/followers/follower-2"] {
        assert!(site.path(directory).is_dir(), "{directory} is missing");
    }

    let pids = dev.node_pids();
    assert_eq!(pids.len(), 3, "one process for each node");
    let printed: Vec<&i32> = pids.iter().filter(|pid| output.contains(&pid.to_string())).collect();
    assert_eq!(printed.len(), 3, "the table shows the pids {pids:?}:\n{output}");
    kill_pid(pids[2]);
    wait_until("the others show it down", 20, || async {
        let text = dev.get(0, "/cluster_status").await.1;
        text.contains("\"down\"")
    })
    .await;
    assert_eq!(dev.put(1, "after", r#"{"value":1}"#).await, 200);
    assert_eq!(dev.node_pids().len(), 2, "it starts nothing again by itself");

    assert!(dev.interrupt().await.success());
    dev.start_again();
    dev.wait_ready(3).await;
    assert_eq!(dev.get(2, "/key/after").await.0, 200);
    let status: Value = serde_json::from_str(&dev.get(0, "/status").await.1).unwrap();
    assert_eq!(status["members"].as_array().map(Vec::len), Some(3), "{status}");
    assert!(dev.interrupt().await.success());
}
