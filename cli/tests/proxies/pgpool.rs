//! Debian's pgpool-II over a primary and a streaming standby. It sends every read that it may to the standby.

use std::path::Path;

use sqlx::PgPool;

use crate::calls;
use crate::process::{Process, folder, installed};
use crate::stage::Stage;
use crate::storm::storm;

struct Cluster {
    stage: Stage,
    standby: Process,
    pgpool: Process,
}

impl Cluster {
    async fn start() -> Self {
        let stage = Stage::new(&[("cluster_name", "primary")]).await;
        let standby = standby(&stage).await;
        let pgpool = pgpool(&stage, &standby).await;
        let cluster = Self { stage, standby, pgpool };
        // Through pgpool, as a deployment does.
        let pool = cluster.pool();
        cluster.stage.once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
        cluster.stage.once.check(&pool).await.unwrap();
        cluster.caught_up().await;
        let at: String = sqlx::query_scalar("select current_setting('cluster_name')")
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(at, "standby", "where a plain look goes");
        cluster
    }

    fn pool(&self) -> PgPool {
        PgPool::connect_lazy_with(self.pgpool.options())
    }

    /// Waits until the standby has replayed everything that the primary wrote.
    async fn caught_up(&self) {
        self.stage
            .until("select replay_lsn >= pg_current_wal_insert_lsn() from pg_stat_replication")
            .await;
    }

    /// From now on the standby shows old data.
    async fn pause(&self) {
        let standby = PgPool::connect_with(self.standby.options()).await.unwrap();
        sqlx::query("select pg_wal_replay_pause()").execute(&standby).await.unwrap();
        let paused = "select pg_get_wal_replay_pause_state() = 'paused'";
        while !sqlx::query_scalar::<_, bool>(paused).fetch_one(&standby).await.unwrap() {}
        standby.close().await;
    }

    /// Checks where pgpool sent the calls: a call that commits must not reach the standby.
    fn no_call_went_to_the_standby(&self) {
        let log = self.standby.log().to_lowercase();
        assert!(log.contains("statement: ") || log.contains("execute "), "it logs its statements");
        let calls: Vec<_> = log.lines().filter(|line| line.contains(": call ")).collect();
        assert!(calls.is_empty(), "{calls:#?}");
    }
}

async fn standby(stage: &Stage) -> Process {
    let dir = folder(&stage.server);
    let primary = stage.server.connect_options();
    let bin = stage.server.bin_dir();
    // The socket is beside the data.
    let start = r#"set -e
        "$1/pg_basebackup" -h "$2" -p "$3" -U postgres -D data -R -X stream -c fast
        exec "$1/postgres" -D data -k "$PWD" -p 5432 -c listen_addresses= -c max_connections=200 -c cluster_name=standby \
            -c log_statement=all"#;
    let (socket, port) = (primary.get_socket().unwrap(), primary.get_port().to_string());
    let arguments = ["-c", start, "standby", path(bin), path(socket), &port];
    Process::start("the standby", dir, Path::new("/bin/sh"), &arguments).await
}

async fn pgpool(stage: &Stage, standby: &Process) -> Process {
    let dir = folder(&stage.server);
    let [primary, second] = [stage.server.connect_options(), standby.options()];
    let [one, two] = [&primary, &second].map(|options| path(options.get_socket().unwrap()));
    let here = path(&dir);
    let settings = format!(
        "backend_clustering_mode = 'streaming_replication'
         listen_addresses = ''
         port = 5432
         socket_dir = '{here}'
         pcp_listen_addresses = ''
         pcp_socket_dir = '{here}'
         pid_file_name = '{here}/pid'
         logdir = '{here}'
         backend_hostname0 = '{one}'
         backend_port0 = {}
         backend_weight0 = 0
         backend_flag0 = 'DISALLOW_TO_FAILOVER'
         backend_hostname1 = '{two}'
         backend_port1 = 5432
         backend_weight1 = 1
         backend_flag1 = 'DISALLOW_TO_FAILOVER'
         sr_check_user = 'postgres'
         sr_check_database = 'postgres'
         enable_pool_hba = off
         pool_passwd = ''
         num_init_children = 40
         max_pool = 1
         load_balance_mode = on",
        primary.get_port()
    );
    let conf = dir.join("pgpool.conf");
    std::fs::write(&conf, settings).unwrap();
    let program = installed("/usr/sbin/pgpool", "pgpool2");
    let arguments = ["-n", "-f", path(&conf), "-F", "/dev/null", "-a", "/dev/null"];
    Process::start("pgpool-II", dir.clone(), &program, &arguments).await
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_beside_a_standby_that_follows() {
    let cluster = Cluster::start().await;
    calls::all_work(&cluster.stage, &cluster.pool()).await;
    storm(&cluster.stage, &cluster.pgpool.options(), "storm").await.are_all_answers();
    cluster.no_call_went_to_the_standby();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_beside_a_standby_that_has_stopped() {
    let cluster = Cluster::start().await;
    cluster.pause().await;
    let pool = cluster.pool();
    calls::run(&cluster.stage, &pool).await;
    let seen: i64 = sqlx::query_scalar("select count(*) from pgonce.idempotency_keys")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(seen, 0, "what a plain look sees");
    cluster.stage.execute("truncate effect, pgonce.idempotency_keys").await;
    calls::all_work(&cluster.stage, &pool).await;
    storm(&cluster.stage, &cluster.pgpool.options(), "storm").await.are_all_answers();
    cluster.no_call_went_to_the_standby();
}
