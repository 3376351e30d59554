-- SQLite plans without statistics: of indexes that fit equally, the order of creation decides.
CREATE TABLE acme_accounts (
    directory TEXT NOT NULL,
    "key" BLOB NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_acme_accounts PRIMARY KEY (directory)
);

CREATE TABLE bundle_chunks (
    hash TEXT NOT NULL,
    number INTEGER NOT NULL,
    content BLOB NOT NULL,
    CONSTRAINT pk_bundle_chunks PRIMARY KEY (hash, number)
);

CREATE TABLE class_times (
    builder_id TEXT NOT NULL,
    start DATETIME NOT NULL,
    class TEXT NOT NULL,
    within_5_ms BIGINT NOT NULL,
    within_10_ms BIGINT NOT NULL,
    within_25_ms BIGINT NOT NULL,
    within_50_ms BIGINT NOT NULL,
    within_100_ms BIGINT NOT NULL,
    within_250_ms BIGINT NOT NULL,
    within_500_ms BIGINT NOT NULL,
    within_1000_ms BIGINT NOT NULL,
    within_2500_ms BIGINT NOT NULL,
    within_10000_ms BIGINT NOT NULL,
    slower BIGINT NOT NULL,
    CONSTRAINT pk_class_times PRIMARY KEY (builder_id, start, class)
);

CREATE INDEX ix_class_times_start ON class_times (start);

CREATE TABLE database_lease (
    id INTEGER NOT NULL,
    term BIGINT NOT NULL,
    host_id TEXT NOT NULL,
    host_name TEXT NOT NULL,
    data_dir TEXT NOT NULL,
    identity TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    renewed_at DATETIME NOT NULL,
    released BOOLEAN NOT NULL,
    CONSTRAINT pk_database_lease PRIMARY KEY (id),
    CONSTRAINT ck_database_lease_only CHECK (id = 1)
);

CREATE TABLE metrics (
    builder_id TEXT NOT NULL,
    start DATETIME NOT NULL,
    seconds DOUBLE NOT NULL,
    cpu_seconds DOUBLE NOT NULL,
    memory_byte_seconds DOUBLE NOT NULL,
    memory_most_bytes BIGINT NOT NULL,
    disk_most_bytes BIGINT NOT NULL,
    network_in_bytes BIGINT NOT NULL,
    network_out_bytes BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    answers_2xx BIGINT NOT NULL,
    answers_3xx BIGINT NOT NULL,
    answers_4xx BIGINT NOT NULL,
    answers_5xx BIGINT NOT NULL,
    within_5_ms BIGINT DEFAULT 0 NOT NULL,
    within_10_ms BIGINT DEFAULT 0 NOT NULL,
    within_25_ms BIGINT DEFAULT 0 NOT NULL,
    within_50_ms BIGINT DEFAULT 0 NOT NULL,
    within_100_ms BIGINT DEFAULT 0 NOT NULL,
    within_250_ms BIGINT DEFAULT 0 NOT NULL,
    within_500_ms BIGINT DEFAULT 0 NOT NULL,
    within_1000_ms BIGINT DEFAULT 0 NOT NULL,
    within_2500_ms BIGINT DEFAULT 0 NOT NULL,
    within_10000_ms BIGINT DEFAULT 0 NOT NULL,
    slower BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_metrics PRIMARY KEY (builder_id, start)
);

CREATE INDEX ix_metrics_start ON metrics (start);

CREATE TABLE services (
    id TEXT NOT NULL,
    host_name TEXT NOT NULL,
    data_dir TEXT NOT NULL,
    version TEXT NOT NULL,
    disks TEXT NOT NULL,
    vault_key TEXT NOT NULL,
    vault_key_file TEXT NOT NULL,
    ssh_key TEXT NOT NULL,
    ssh_key_file TEXT NOT NULL,
    seen_at DATETIME NOT NULL,
    known_in BIGINT,
    CONSTRAINT pk_services PRIMARY KEY (id)
);

CREATE TABLE stored_bundles (
    hash TEXT NOT NULL,
    size BIGINT NOT NULL,
    CONSTRAINT pk_stored_bundles PRIMARY KEY (hash)
);

CREATE TABLE tenants (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    spending_cap TEXT,
    cap_warned_at DATETIME,
    spending_due_at DATETIME,
    live_builders INTEGER DEFAULT 0 NOT NULL,
    live_disk BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_tenants PRIMARY KEY (id),
    CONSTRAINT uq_tenants_name UNIQUE (name)
);

CREATE INDEX ix_tenants_spending_due_at ON tenants (spending_due_at);

CREATE TABLE upload_chunks (
    upload_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    size INTEGER NOT NULL,
    content BLOB NOT NULL,
    CONSTRAINT pk_upload_chunks PRIMARY KEY (upload_id, number)
);

CREATE TABLE wildcard_certificates (
    domain TEXT NOT NULL,
    next_try_at DATETIME NOT NULL,
    certificate BLOB,
    fingerprint TEXT,
    ordered_at DATETIME,
    expires_at DATETIME,
    failures INTEGER NOT NULL,
    reason TEXT NOT NULL,
    CONSTRAINT pk_wildcard_certificates PRIMARY KEY (domain)
);

CREATE TABLE backup_keys (
    tenant_id TEXT NOT NULL,
    sealed BLOB NOT NULL,
    created_at DATETIME NOT NULL,
    checked_at DATETIME NOT NULL,
    pruned_at DATETIME NOT NULL,
    forgotten_at DATETIME,
    fault TEXT NOT NULL,
    CONSTRAINT pk_backup_keys PRIMARY KEY (tenant_id),
    CONSTRAINT fk_backup_keys_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE TABLE builders (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    job_type VARCHAR(32) NOT NULL,
    visibility VARCHAR(32) NOT NULL,
    service_token TEXT NOT NULL,
    host TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    auto_stop_interval BIGINT NOT NULL,
    backup_interval_hours BIGINT NOT NULL,
    desired VARCHAR(32) NOT NULL,
    desired_by TEXT NOT NULL,
    desired_reason TEXT NOT NULL,
    run INTEGER NOT NULL,
    settled_run INTEGER NOT NULL,
    status VARCHAR(32) NOT NULL,
    status_reason TEXT NOT NULL,
    exit_code INTEGER,
    failure_code TEXT,
    last_active_at DATETIME,
    deleted_at DATETIME,
    claimed_by TEXT,
    claimed_until DATETIME,
    due_at DATETIME,
    disk TEXT DEFAULT '' NOT NULL,
    candidate INTEGER,
    candidate_disk TEXT,
    handover VARCHAR(32),
    spare_disks JSON,
    spending_cap TEXT,
    cap_warned_at DATETIME,
    asleep_since DATETIME,
    stop_kind VARCHAR(32),
    opens_with INTEGER,
    member TEXT DEFAULT '' NOT NULL,
    reserved_disk DOUBLE DEFAULT 0 NOT NULL,
    backup_check_at DATETIME,
    drill_base_at DATETIME,
    disk_released_at DATETIME,
    disk_has_data BOOLEAN DEFAULT 0 NOT NULL,
    location TEXT DEFAULT '' NOT NULL,
    disk_is_made BOOLEAN DEFAULT 0 NOT NULL,
    CONSTRAINT pk_builders PRIMARY KEY (id),
    CONSTRAINT ck_builders_version CHECK (version >= 1),
    CONSTRAINT ck_builders_auto_stop_interval CHECK (auto_stop_interval >= 0),
    CONSTRAINT ck_builders_backup_interval_hours CHECK (backup_interval_hours >= 0),
    CONSTRAINT ck_builders_settled_run CHECK (settled_run >= 0 AND settled_run <= run),
    CONSTRAINT ck_builders_deleted CHECK (status <> 'deleted' OR desired = 'deleted'),
    CONSTRAINT ck_builders_claim CHECK ((claimed_by IS NULL) = (claimed_until IS NULL)),
    CONSTRAINT fk_builders_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE INDEX ix_builders_tenant_id_created_at ON builders (tenant_id, created_at);

CREATE UNIQUE INDEX uq_builders_live_host ON builders (host) WHERE desired <> 'deleted';

CREATE UNIQUE INDEX uq_builders_live_name ON builders (tenant_id, name) WHERE desired <> 'deleted';

CREATE UNIQUE INDEX uq_builders_service_token ON builders (service_token);

CREATE INDEX ix_builders_due ON builders (coalesce(claimed_until, due_at));

CREATE INDEX ix_builders_live ON builders (tenant_id, status, desired, reserved_disk) WHERE desired <> 'deleted';

CREATE INDEX ix_builders_active ON builders (tenant_id) WHERE desired = 'running' OR candidate IS NOT NULL;

CREATE INDEX ix_builders_backed_up ON builders (id) WHERE backup_interval_hours > 0;

CREATE INDEX ix_builders_capped ON builders (tenant_id) WHERE spending_cap IS NOT NULL;

CREATE INDEX ix_builders_status ON builders (status);

CREATE INDEX ix_builders_tenant_id_updated_at ON builders (tenant_id, updated_at);

CREATE INDEX ix_builders_backup_check_at ON builders (backup_check_at) WHERE backup_interval_hours > 0 AND desired <> 'deleted';

CREATE INDEX ix_builders_drill_base_at ON builders (drill_base_at) WHERE backup_interval_hours > 0 AND desired <> 'deleted';

CREATE INDEX ix_builders_location ON builders (location) WHERE desired <> 'deleted' AND location <> '';

CREATE TABLE credentials (
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    variables JSON NOT NULL,
    sealed BLOB NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    last_used_at DATETIME,
    last_used_by TEXT,
    CONSTRAINT pk_credentials PRIMARY KEY (tenant_id, name),
    CONSTRAINT fk_credentials_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE TABLE idempotency (
    tenant_id TEXT NOT NULL,
    "key" TEXT NOT NULL,
    body_hash TEXT NOT NULL,
    owner TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    builder_id TEXT,
    status INTEGER,
    headers JSON,
    body JSON,
    version INTEGER,
    CONSTRAINT pk_idempotency PRIMARY KEY (tenant_id, "key"),
    CONSTRAINT fk_idempotency_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE INDEX ix_idempotency_created_at ON idempotency (created_at);

CREATE TABLE reviews (
    tenant_id TEXT NOT NULL,
    "key" TEXT NOT NULL,
    reviewed_at DATETIME NOT NULL,
    report JSON NOT NULL,
    CONSTRAINT pk_reviews PRIMARY KEY (tenant_id, "key"),
    CONSTRAINT fk_reviews_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE INDEX ix_reviews_reviewed_at ON reviews (reviewed_at);

CREATE TABLE tenant_months (
    tenant_id TEXT NOT NULL,
    month DATETIME NOT NULL,
    running TEXT NOT NULL,
    paid TEXT NOT NULL,
    days TEXT DEFAULT '{}' NOT NULL,
    CONSTRAINT pk_tenant_months PRIMARY KEY (tenant_id, month),
    CONSTRAINT fk_tenant_months_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE TABLE tokens (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    scopes JSON NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME,
    revoked_at DATETIME,
    last_used_at DATETIME,
    calls JSON,
    made_by TEXT,
    CONSTRAINT pk_tokens PRIMARY KEY (id),
    CONSTRAINT fk_tokens_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT uq_tokens_secret_hash UNIQUE (secret_hash)
);

CREATE INDEX ix_tokens_tenant_id ON tokens (tenant_id);

CREATE TABLE uploads (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    size BIGINT,
    sha256 TEXT,
    complete BOOLEAN NOT NULL,
    token_id TEXT,
    CONSTRAINT pk_uploads PRIMARY KEY (id),
    CONSTRAINT fk_uploads_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE INDEX ix_uploads_tenant_id ON uploads (tenant_id);

CREATE TABLE webhooks (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    url TEXT NOT NULL,
    events JSON NOT NULL,
    secret BLOB NOT NULL,
    created_at DATETIME NOT NULL,
    created_by TEXT NOT NULL,
    place BIGINT NOT NULL,
    status VARCHAR(32) NOT NULL,
    status_reason TEXT NOT NULL,
    failures INTEGER NOT NULL,
    held_until DATETIME,
    last_success_at DATETIME,
    token_id TEXT,
    expires_at DATETIME,
    CONSTRAINT pk_webhooks PRIMARY KEY (id),
    CONSTRAINT fk_webhooks_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE INDEX ix_webhooks_tenant_id ON webhooks (tenant_id);

CREATE TABLE acceptances (
    builder_id TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    reason TEXT NOT NULL,
    accepted_by TEXT NOT NULL,
    accepted_at DATETIME NOT NULL,
    expires_at DATETIME,
    CONSTRAINT pk_acceptances PRIMARY KEY (builder_id, fingerprint),
    CONSTRAINT fk_acceptances_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE TABLE deliveries (
    id TEXT NOT NULL,
    webhook_id TEXT NOT NULL,
    event_id BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    due_at DATETIME NOT NULL,
    status VARCHAR(32) NOT NULL,
    attempts JSON NOT NULL,
    CONSTRAINT pk_deliveries PRIMARY KEY (id),
    CONSTRAINT uq_deliveries_webhook_id_event_id UNIQUE (webhook_id, event_id),
    CONSTRAINT fk_deliveries_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id)
);

CREATE INDEX ix_deliveries_webhook_id_status_due_at ON deliveries (webhook_id, status, due_at);

CREATE TABLE domains (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    host TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    created_by TEXT NOT NULL,
    status VARCHAR(32) NOT NULL,
    reason TEXT NOT NULL,
    failures INTEGER NOT NULL,
    next_try_at DATETIME,
    not_before DATETIME,
    proven_at DATETIME,
    released_at DATETIME,
    ordered_at DATETIME,
    certificate BLOB,
    fingerprint TEXT,
    expires_at DATETIME,
    warned_days INTEGER,
    CONSTRAINT pk_domains PRIMARY KEY (id),
    CONSTRAINT fk_domains_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_domains_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE UNIQUE INDEX uq_domains_claim ON domains (tenant_id, host) WHERE released_at IS NULL;

CREATE UNIQUE INDEX uq_domains_held ON domains (host) WHERE proven_at IS NOT NULL AND released_at IS NULL;

CREATE INDEX ix_domains_builder_id ON domains (builder_id);

CREATE INDEX ix_domains_host ON domains (host);

CREATE INDEX ix_domains_next_try_at ON domains (next_try_at);

CREATE TABLE events (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    tenant_id TEXT NOT NULL,
    builder_id TEXT,
    time DATETIME NOT NULL,
    type TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    details JSON NOT NULL,
    CONSTRAINT fk_events_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_events_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE INDEX ix_events_builder_id_id ON events (builder_id, id);

CREATE INDEX ix_events_tenant_id_id ON events (tenant_id, id);

CREATE TABLE leases (
    id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_leases PRIMARY KEY (id),
    CONSTRAINT fk_leases_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE INDEX ix_leases_builder_id ON leases (builder_id);

CREATE TABLE ledger (
    id INTEGER NOT NULL,
    tenant_id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    billing VARCHAR(32) NOT NULL,
    started_at DATETIME NOT NULL,
    ended_at DATETIME,
    hourly_rate TEXT NOT NULL,
    CONSTRAINT pk_ledger PRIMARY KEY (id),
    CONSTRAINT ck_ledger_ended_at CHECK (ended_at >= started_at),
    CONSTRAINT fk_ledger_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_ledger_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE INDEX ix_ledger_builder_id_started_at ON ledger (builder_id, started_at);

CREATE UNIQUE INDEX uq_ledger_open ON ledger (builder_id) WHERE ended_at IS NULL;

CREATE INDEX ix_ledger_tenant_id_started_at ON ledger (tenant_id, started_at);

CREATE INDEX ix_ledger_open ON ledger (tenant_id, billing, hourly_rate, started_at, ended_at) WHERE ended_at IS NULL;

CREATE TABLE ledger_months (
    builder_id TEXT NOT NULL,
    month DATETIME NOT NULL,
    tenant_id TEXT NOT NULL,
    running TEXT NOT NULL,
    paid TEXT NOT NULL,
    CONSTRAINT pk_ledger_months PRIMARY KEY (builder_id, month),
    CONSTRAINT fk_ledger_months_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id),
    CONSTRAINT fk_ledger_months_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);

CREATE INDEX ix_ledger_months_tenant_id_month ON ledger_months (tenant_id, month);

CREATE TABLE open_builds (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    started_at DATETIME NOT NULL,
    seen_at DATETIME NOT NULL,
    CONSTRAINT pk_open_builds PRIMARY KEY (id),
    CONSTRAINT fk_open_builds_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_open_builds_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE TABLE preview_links (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    port INTEGER,
    created_by TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    token_id TEXT,
    CONSTRAINT pk_preview_links PRIMARY KEY (id),
    CONSTRAINT fk_preview_links_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_preview_links_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id),
    CONSTRAINT uq_preview_links_secret_hash UNIQUE (secret_hash)
);

CREATE INDEX ix_preview_links_builder_id ON preview_links (builder_id);

CREATE TABLE sessions (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    client TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    last_used_at DATETIME NOT NULL,
    CONSTRAINT pk_sessions PRIMARY KEY (id),
    CONSTRAINT fk_sessions_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_sessions_token_id FOREIGN KEY(token_id) REFERENCES tokens (id),
    CONSTRAINT uq_sessions_secret_hash UNIQUE (secret_hash)
);

CREATE INDEX ix_sessions_token_id ON sessions (token_id);

CREATE INDEX ix_sessions_last_used_at ON sessions (last_used_at);

CREATE TABLE sign_in_links (
    code_hash TEXT NOT NULL,
    token_id TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_sign_in_links PRIMARY KEY (code_hash),
    CONSTRAINT fk_sign_in_links_token_id FOREIGN KEY(token_id) REFERENCES tokens (id)
);

CREATE TABLE ssh_grants (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    revoked_at DATETIME,
    last_used_at DATETIME,
    token_id TEXT,
    CONSTRAINT pk_ssh_grants PRIMARY KEY (id),
    CONSTRAINT fk_ssh_grants_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_ssh_grants_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id),
    CONSTRAINT uq_ssh_grants_secret_hash UNIQUE (secret_hash)
);

CREATE INDEX ix_ssh_grants_builder_id ON ssh_grants (builder_id);

CREATE TABLE versions (
    builder_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    bundle_hash TEXT NOT NULL,
    entrypoint TEXT NOT NULL,
    port INTEGER NOT NULL,
    env JSON NOT NULL,
    cpu DOUBLE NOT NULL,
    memory DOUBLE NOT NULL,
    disk DOUBLE NOT NULL,
    isolation VARCHAR(32) NOT NULL,
    credentials JSON NOT NULL,
    skip_review BOOLEAN NOT NULL,
    skip_qa BOOLEAN NOT NULL,
    require_qa BOOLEAN NOT NULL,
    created_by TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    status VARCHAR(32) NOT NULL,
    status_reason TEXT NOT NULL,
    layer_key TEXT,
    review_passed BOOLEAN,
    qa_passed BOOLEAN,
    failure_code TEXT,
    rolled_back_to INTEGER,
    fresh_since INTEGER,
    install_scripts BOOLEAN DEFAULT 0 NOT NULL,
    review_key TEXT,
    review_until DATETIME,
    build TEXT DEFAULT '' NOT NULL,
    build_key TEXT,
    stdin TEXT DEFAULT '' NOT NULL,
    start_timeout INTEGER DEFAULT 0 NOT NULL,
    env_file TEXT DEFAULT '' NOT NULL,
    env_file_values JSON,
    release TEXT DEFAULT '' NOT NULL,
    released BOOLEAN DEFAULT 0 NOT NULL,
    protocol VARCHAR(32) DEFAULT 'http' NOT NULL,
    root TEXT DEFAULT '' NOT NULL,
    CONSTRAINT pk_versions PRIMARY KEY (builder_id, number),
    CONSTRAINT ck_versions_number CHECK (number >= 1),
    CONSTRAINT ck_versions_port CHECK (port BETWEEN 1 AND 65535),
    CONSTRAINT ck_versions_resources CHECK (cpu > 0 AND memory > 0 AND disk > 0),
    CONSTRAINT fk_versions_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE INDEX ix_versions_bundle_hash ON versions (bundle_hash);

CREATE INDEX ix_versions_review_key ON versions (review_key);

CREATE INDEX ix_versions_layer_key ON versions (layer_key);

CREATE INDEX ix_versions_build_key ON versions (build_key);

CREATE TABLE backups (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    builder_name TEXT NOT NULL,
    version INTEGER NOT NULL,
    kind VARCHAR(32) NOT NULL,
    status VARCHAR(32) NOT NULL,
    actor TEXT NOT NULL,
    owner TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    copy TEXT,
    finished_at DATETIME,
    snapshot TEXT,
    digest TEXT,
    files BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    added_bytes BIGINT NOT NULL,
    error TEXT NOT NULL,
    expires_at DATETIME,
    retry_at DATETIME,
    drilled_at DATETIME,
    verified_at DATETIME,
    fault TEXT NOT NULL,
    hindrance JSON,
    CONSTRAINT pk_backups PRIMARY KEY (id),
    CONSTRAINT fk_backups_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number),
    CONSTRAINT fk_backups_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_backups_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);

CREATE INDEX ix_backups_status ON backups (status);

CREATE INDEX ix_backups_expires_at ON backups (expires_at);

CREATE INDEX ix_backups_builder_id_created_at ON backups (builder_id, created_at);

CREATE INDEX ix_backups_tenant_id_created_at ON backups (tenant_id, created_at);

CREATE INDEX ix_backups_unfinished ON backups (owner) WHERE status IN ('planned', 'held') OR copy IS NOT NULL;

CREATE INDEX ix_backups_damaged ON backups (id) WHERE fault <> '';

CREATE TABLE build_logs (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    builder_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    time DATETIME NOT NULL,
    stream VARCHAR(32) NOT NULL,
    text TEXT NOT NULL,
    CONSTRAINT fk_build_logs_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number)
);

CREATE INDEX ix_build_logs_builder_id_id ON build_logs (builder_id, id);

CREATE TABLE qa_reports (
    builder_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    status VARCHAR(32) NOT NULL,
    gate JSON NOT NULL,
    gate_at DATETIME,
    checks JSON NOT NULL,
    screenshots JSON NOT NULL,
    note TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    requested_at DATETIME,
    started_at DATETIME,
    finished_at DATETIME,
    attempts INTEGER NOT NULL,
    owner TEXT NOT NULL,
    copy_disk TEXT,
    CONSTRAINT pk_qa_reports PRIMARY KEY (builder_id, version),
    CONSTRAINT fk_qa_reports_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number)
);

CREATE TABLE qa_screenshots (
    builder_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    name TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    png BLOB NOT NULL,
    CONSTRAINT pk_qa_screenshots PRIMARY KEY (builder_id, version, name),
    CONSTRAINT fk_qa_screenshots_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number)
);

CREATE TABLE sandboxes (
    id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    run INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    ip TEXT,
    started_at DATETIME,
    listening_at DATETIME,
    end_cause VARCHAR(32),
    end_exit_code INTEGER,
    end_at DATETIME,
    disk TEXT DEFAULT '' NOT NULL,
    trial BOOLEAN DEFAULT 0 NOT NULL,
    release BOOLEAN DEFAULT 0 NOT NULL,
    CONSTRAINT pk_sandboxes PRIMARY KEY (id),
    CONSTRAINT fk_sandboxes_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number),
    CONSTRAINT uq_sandboxes_builder_id_run_attempt UNIQUE (builder_id, run, attempt),
    CONSTRAINT ck_sandboxes_attempt CHECK (attempt >= 1),
    CONSTRAINT ck_sandboxes_end CHECK (end_cause IS NOT NULL OR (end_exit_code IS NULL AND end_at IS NULL))
);

CREATE UNIQUE INDEX uq_sandboxes_open ON sandboxes (builder_id, trial) WHERE end_cause IS NULL;

CREATE TABLE restores (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    builder_id TEXT NOT NULL,
    backup_id TEXT NOT NULL,
    kind VARCHAR(32) NOT NULL,
    status VARCHAR(32) NOT NULL,
    actor TEXT NOT NULL,
    owner TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    disk TEXT NOT NULL,
    name TEXT NOT NULL,
    safety TEXT,
    made TEXT,
    number INTEGER,
    finished_at DATETIME,
    error TEXT NOT NULL,
    hindrance JSON,
    CONSTRAINT pk_restores PRIMARY KEY (id),
    CONSTRAINT fk_restores_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT fk_restores_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id),
    CONSTRAINT fk_restores_backup_id FOREIGN KEY(backup_id) REFERENCES backups (id)
);

CREATE INDEX ix_restores_backup_id ON restores (backup_id);

CREATE INDEX ix_restores_status ON restores (status);
