//! Runs the scenarios one after the other, keeps evidence of what fails or misses its target, and leaves the cluster
//! as it was.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;

use crate::Arguments;
use crate::faults::Faults;
use crate::guard;
use crate::kube::{Kube, LABEL};
use crate::load::Load;
use crate::operator::{NAMESPACE, Operator};
use crate::scenario::{self, Scenario, Set};
use crate::store::Store;
use crate::table::{self, Ended, Row};

/// What every scenario is given.
pub(crate) struct Suite {
    pub(crate) kube: Kube,
    pub(crate) faults: Faults,
    pub(crate) operator: Operator,
    /// The version under which the images were loaded a second time.
    pub(crate) next_version: String,
    evidence: PathBuf,
}

/// Of a scenario.
pub(crate) fn namespace(scenario: &str) -> String {
    format!("e2e-{scenario}")
}

impl Suite {
    /// The same program as the default's, under another name: pods that are to run it are restarted.
    pub(crate) fn next_node_image(&self) -> String {
        format!("kvcluster/kv-node:{}", self.next_version)
    }

    /// For all scenarios but the one that installs it as the README says.
    pub(crate) async fn operator_runs(&self) {
        self.operator.install().await;
    }
}

pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let chosen = match chosen(&arguments) {
        Ok(chosen) => chosen,
        Err(why) => {
            eprintln!("kv-e2e: {why}");
            return ExitCode::FAILURE;
        }
    };
    let kube = Kube::connect(&arguments.kubeconfig).await;
    let suite = Arc::new(Suite {
        operator: Operator::new(&kube),
        kube,
        faults: Faults::new(arguments.machine, arguments.tool),
        next_version: arguments.next_version,
        evidence: arguments.evidence,
    });
    let limit = arguments.scenarios.is_empty().then(|| arguments.set.limit());
    match suite.run_all(&chosen, limit).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("kv-e2e: {why}");
            ExitCode::FAILURE
        }
    }
}

fn chosen(arguments: &Arguments) -> Result<Vec<Scenario>, String> {
    let all = scenario::all();
    if let Some(strange) = arguments.scenarios.iter().find(|name| all.iter().all(|s| s.name != **name)) {
        return Err(format!("no scenario is called {strange}; --list names them"));
    }
    let wanted = |scenario: &Scenario| match arguments.scenarios.is_empty() {
        true => arguments.set == Set::All || scenario.set == Set::Ci,
        false => arguments.scenarios.iter().any(|name| name == scenario.name),
    };
    Ok(all.into_iter().filter(wanted).collect())
}

impl Suite {
    /// Err: why the run failed.
    async fn run_all(self: &Arc<Self>, chosen: &[Scenario], limit: Option<Duration>) -> Result<(), String> {
        self.clean().await?;
        let began = Instant::now();
        let mut rows = Vec::new();
        for scenario in chosen {
            println!("{}: {}", scenario.name, scenario.about);
            rows.push(self.run_one(scenario).await);
        }
        let took = began.elapsed();
        table::print(&rows, took);
        self.clean().await?;
        if rows.iter().any(|row| matches!(row.ended, Ended::Failed(_))) {
            return Err("scenarios failed".to_owned());
        }
        match limit.filter(|limit| took > *limit) {
            Some(limit) => Err(format!("the set took {} s of {} s at most", took.as_secs(), limit.as_secs())),
            None => Ok(()),
        }
    }

    async fn run_one(self: &Arc<Self>, scenario: &Scenario) -> Row {
        let began = Instant::now();
        let cannot = match scenario.needs {
            Some(ability) => self.faults.cannot(&self.kube, ability).await,
            None => None,
        };
        let ended = match cannot {
            Some(why) => Ended::NotPossible(why),
            None => self.try_one(scenario).await,
        };
        let row = Row { name: scenario.name, seconds: began.elapsed().as_secs(), ended };
        match &row.ended {
            Ended::Passed(report) => println!("  passed in {} s, write pause {:?} ms", row.seconds, report.pause_ms),
            Ended::Failed(why) => println!("  FAILED after {} s: {why}", row.seconds),
            Ended::NotPossible(why) => println!("  not tried: {why}"),
        }
        row
    }

    /// A panic is a failure of the scenario alone.
    async fn try_one(self: &Arc<Self>, scenario: &Scenario) -> Ended {
        let run = AssertUnwindSafe((scenario.run)(Arc::clone(self))).catch_unwind();
        let ended = match run.await {
            Ok(report) => {
                if report.over_target {
                    self.keep_evidence(scenario.name).await;
                }
                Ended::Passed(report)
            }
            Err(panic) => {
                self.faults.mend(&self.kube).await;
                self.keep_evidence(scenario.name).await;
                Ended::Failed(message(panic.as_ref()))
            }
        };
        // Cleaning up is a part of the scenario: what cannot be deleted is a failure, too.
        let cleaned = AssertUnwindSafe(self.kube.delete_namespace(&namespace(scenario.name))).catch_unwind().await;
        match (ended, cleaned) {
            (Ended::Passed(_), Err(panic)) => Ended::Failed(message(panic.as_ref())),
            (ended, _) => ended,
        }
    }

    /// What whoever looks into a failure, or a pause that was too long, needs: objects, events, logs, and the client's history.
    async fn keep_evidence(&self, scenario: &str) {
        let (dir, namespace) = (self.evidence.join(scenario), namespace(scenario));
        std::fs::create_dir_all(&dir).expect("the directory for evidence is writable");
        let everything = "kvclusters,pods,statefulsets,persistentvolumeclaims,services,endpointslices,events";
        let label = "app.kubernetes.io/name=kvcluster";
        let operators = "app.kubernetes.io/name=kv-operator";
        let asked: [(&str, &[&str]); 7] = [
            ("client.log", &["logs", "client", "--namespace", &namespace]),
            ("objects.yaml", &["get", everything, "--namespace", &namespace, "--output", "yaml"]),
            ("described.txt", &["describe", "kvclusters,pods", "--namespace", &namespace]),
            ("nodes.log", &["logs", "--selector", label, "--namespace", &namespace, "--prefix", "--tail=-1"]),
            (
                "nodes-before.log",
                &["logs", "--selector", label, "--namespace", &namespace, "--prefix", "--tail=-1", "--previous"],
            ),
            ("operator.log", &["logs", "--selector", operators, "--namespace", NAMESPACE, "--prefix", "--tail=-1"]),
            (
                "operator-here.log",
                &["logs", "--selector", operators, "--namespace", &namespace, "--prefix", "--tail=-1"],
            ),
        ];
        for (file, arguments) in asked {
            let said = self.kube.program("kubectl", arguments).await.unwrap_or_else(|said| said);
            std::fs::write(dir.join(file), said).expect("the directory for evidence is writable");
        }
        if let Some(history) = Load::history(&Store::new(&self.kube, &namespace)).await {
            std::fs::write(dir.join("history.jsonl"), history).expect("the directory for evidence is writable");
        }
        println!("  evidence is in {}", dir.display());
    }

    /// Takes away everything of the suite, also what a run left that was broken off. Err: somebody else would lose
    /// something, and nothing is taken away.
    async fn clean(&self) -> Result<(), String> {
        guard::refuse_others(&self.kube).await?;
        self.faults.mend(&self.kube).await;
        for namespace in self.kube.namespaces().await.iter().filter(|name| *name != NAMESPACE) {
            self.kube.delete_namespace(namespace).await;
        }
        self.operator.uninstall().await;
        for definitions in ["kvclusters.kvcluster.dev", &format!("--selector={LABEL}")] {
            self.kube.must("kubectl", &["delete", "crd", definitions, "--ignore-not-found"]).await;
        }
        self.kube.delete_namespace(NAMESPACE).await;
        Ok(())
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
