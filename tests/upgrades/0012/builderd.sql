BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0012');
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
INSERT INTO "backup_keys" VALUES('c6f35fac-3590-4a69-9bbd-74ec8a997665',X'012E3A680E497541C6B8F0B44D50181B24CB79FB3A1D48676D35D25C39B5EBDB8AA070B64DE4F51F9D1F15010BEC1141510AA171D37887A8727379EF7344DFF3E3CC297E3DA8BC431BE7CEEEB6B7D6FEA0','2026-11-27 16:23:37.916564','2026-11-27 16:23:37.916564','2026-11-27 16:23:37.916564',NULL,'');
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
	CONSTRAINT pk_backups PRIMARY KEY (id), 
	CONSTRAINT fk_backups_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id), 
	CONSTRAINT fk_backups_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id), 
	CONSTRAINT fk_backups_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number)
);
INSERT INTO "backups" VALUES('7ac88c7e-1114-43cf-8e91-5b364cbfe652','c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','up',2,'requested','done','token cli','18df2770-91d8-4289-b3f3-4075d6873034','2026-11-27 16:23:37.884335',NULL,'2026-11-27 16:23:42.713312','304848b92a57aeaab63d45b6c6e4b6b7436dec89301fc12f3ef903aba63e7644','7b5c7c644474ebd6e16bc28171bb47a8dca912b0176680c0f553afca0f37bec1',1,407,1473,'',NULL,NULL,NULL,NULL,'');
CREATE TABLE build_logs (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	builder_id TEXT NOT NULL, 
	version INTEGER NOT NULL, 
	time DATETIME NOT NULL, 
	stream VARCHAR(32) NOT NULL, 
	text TEXT NOT NULL, 
	CONSTRAINT fk_build_logs_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number)
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
	due_at DATETIME, disk TEXT DEFAULT '' NOT NULL, candidate INTEGER, candidate_disk TEXT, handover VARCHAR(32), spare_disks JSON, spending_cap TEXT, cap_warned_at DATETIME, asleep_since DATETIME, stop_kind VARCHAR(32), 
	CONSTRAINT pk_builders PRIMARY KEY (id), 
	CONSTRAINT ck_builders_deleted CHECK (status <> 'deleted' OR desired = 'deleted'), 
	CONSTRAINT ck_builders_claim CHECK ((claimed_by IS NULL) = (claimed_until IS NULL)), 
	CONSTRAINT ck_builders_auto_stop_interval CHECK (auto_stop_interval >= 0), 
	CONSTRAINT ck_builders_backup_interval_hours CHECK (backup_interval_hours >= 0), 
	CONSTRAINT ck_builders_settled_run CHECK (settled_run >= 0 AND settled_run <= run), 
	CONSTRAINT ck_builders_version CHECK (version >= 1), 
	CONSTRAINT fk_builders_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
INSERT INTO "builders" VALUES('328f175a-cee6-4045-b678-4e0e885d36ac','c6f35fac-3590-4a69-9bbd-74ec8a997665','up','always_on','public','bds_SmFjR_Wsrq-TVHbA0ZvjqLzqBUCuFQFgnEFgdUC-wSA','up-328f175a.localhost',2,'2026-11-27 16:23:33.251531','2026-11-27 16:23:37.750331',0,24,'running','token cli','version 2 deployed by token cli',2,2,'running','version 2 deployed by token cli',NULL,NULL,'2026-11-27 16:23:37.750331',NULL,NULL,NULL,NULL,'da3bd6f9-6bc7-4825-af58-29a24a0411a3',NULL,NULL,NULL,'[]',NULL,NULL,NULL,NULL);
INSERT INTO "builders" VALUES('6eae3cea-221f-409d-9b0b-578aed649605','c6f35fac-3590-4a69-9bbd-74ec8a997665','stopped','always_on','public','bds__0MfQ7TQDEssuqNTVv6BHXGiT5IXI--76FwljRDCb_4','stopped-6eae3cea.localhost',1,'2026-11-27 16:23:42.791619','2026-11-27 16:23:45.604160',0,0,'stopped','token cli','stopped by token cli',1,1,'stopped','stopped by token cli',NULL,NULL,'2026-11-27 16:23:43.949412',NULL,NULL,NULL,NULL,'0f789e7c-673d-4b9f-b1a8-0a0f1667523c',NULL,NULL,NULL,'[]',NULL,NULL,NULL,'person');
INSERT INTO "builders" VALUES('4a668436-d979-4318-a3ac-ed3812e59db9','c6f35fac-3590-4a69-9bbd-74ec8a997665','deleted','always_on','public','bds_yBOIHlhqn2o7tjD7MTYMEFArAEdEEHoUUwCYKIJrewo','deleted-4a668436.localhost',1,'2026-11-27 16:23:44.093030','2026-11-27 16:23:45.888395',0,0,'deleted','token cli','deleted by token cli',1,1,'deleted','deleted by token cli',NULL,NULL,'2026-11-27 16:23:45.392374','2026-11-27 16:23:45.888395',NULL,NULL,NULL,'fc83193a-0b81-46bb-8c4a-22ebf00ad477',NULL,NULL,NULL,'[]',NULL,NULL,NULL,NULL);
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
INSERT INTO "credentials" VALUES('c6f35fac-3590-4a69-9bbd-74ec8a997665','mail','["API_KEY"]',X'012E3A680E497541C607F295785A0E90D87E80459D96B8F4C36290C2317F8717078354C6F5466E6D090F79AFAB7DDEA4CA62630C41C34770F2844BC38695CCF9FCD21D70296930250432AF68DF1BFC38C4A0C079E81B725E6140A1','2026-11-27 16:23:33.075901','2026-11-27 16:23:33.075901','2026-11-27 16:23:36.673353','328f175a-cee6-4045-b678-4e0e885d36ac');
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
	CONSTRAINT fk_deliveries_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id), 
	CONSTRAINT uq_deliveries_webhook_id_event_id UNIQUE (webhook_id, event_id)
);
CREATE TABLE "events" (
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
INSERT INTO "events" VALUES(1,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:33.251531','builder.created','token cli','created by token cli','{"name":"up"}');
INSERT INTO "events" VALUES(2,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:33.450218','stage.finished','system','nothing to install','{"stage":"install","seconds":0.0,"ok":true,"reused":true}');
INSERT INTO "events" VALUES(3,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:33.545917','stage.started','system','start','{"stage":"start"}');
INSERT INTO "events" VALUES(4,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:33.977386','sandbox.started','system','started','{"sandbox":"1a3f646dd6f3e1ba","version":1,"attempt":1}');
INSERT INTO "events" VALUES(5,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:34.360142','stage.finished','system','start','{"stage":"start","seconds":0.814,"ok":true}');
INSERT INTO "events" VALUES(6,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:34.996213','stage.finished','system','passed','{"stage":"qa","seconds":0.604,"ok":true}');
INSERT INTO "events" VALUES(7,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:35.050554','builder.status','token cli','created by token cli','{"from":"creating","to":"running"}');
INSERT INTO "events" VALUES(8,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:35.327141','version.created','token cli','version 2 made by token cli','{"version":2}');
INSERT INTO "events" VALUES(9,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:35.443302','stage.finished','system','nothing to install','{"stage":"install","seconds":0.0,"ok":true,"reused":true}');
INSERT INTO "events" VALUES(10,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:36.387700','sandbox.ended','system','stopped','{"sandbox":"1a3f646dd6f3e1ba","version":1,"exit_code":143,"cause":"stopped"}');
INSERT INTO "events" VALUES(11,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:36.555110','stage.started','system','start','{"stage":"start"}');
INSERT INTO "events" VALUES(12,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:36.673353','sandbox.started','system','started','{"sandbox":"90051fbb0ec9f014","version":2,"attempt":1}');
INSERT INTO "events" VALUES(13,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:37.119862','stage.finished','system','start','{"stage":"start","seconds":0.565,"ok":true}');
INSERT INTO "events" VALUES(14,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:37.725344','stage.finished','system','passed','{"stage":"qa","seconds":0.579,"ok":true}');
INSERT INTO "events" VALUES(15,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:37.884335','backup.started','token cli','backing up','{"id":"7ac88c7e-1114-43cf-8e91-5b364cbfe652","kind":"requested","version":2}');
INSERT INTO "events" VALUES(16,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:23:42.713312','backup.finished','token cli','backed up','{"id":"7ac88c7e-1114-43cf-8e91-5b364cbfe652","kind":"requested","seconds":4.829,"files":1,"size_bytes":407,"added_bytes":1473}');
INSERT INTO "events" VALUES(17,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:42.791619','builder.created','token cli','created by token cli','{"name":"stopped"}');
INSERT INTO "events" VALUES(18,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:42.858579','stage.finished','system','nothing to install','{"stage":"install","seconds":0.0,"ok":true,"reused":true}');
INSERT INTO "events" VALUES(19,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:42.901366','stage.started','system','start','{"stage":"start"}');
INSERT INTO "events" VALUES(20,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:43.017063','sandbox.started','system','started','{"sandbox":"7e7d766ce14b15b5","version":1,"attempt":1}');
INSERT INTO "events" VALUES(21,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:43.328211','stage.finished','system','start','{"stage":"start","seconds":0.427,"ok":true}');
INSERT INTO "events" VALUES(22,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:43.930404','stage.finished','system','passed','{"stage":"qa","seconds":0.571,"ok":true}');
INSERT INTO "events" VALUES(23,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:43.949412','builder.status','token cli','created by token cli','{"from":"creating","to":"running"}');
INSERT INTO "events" VALUES(24,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:44.093030','builder.created','token cli','created by token cli','{"name":"deleted"}');
INSERT INTO "events" VALUES(25,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:44.114405','stage.finished','system','nothing to install','{"stage":"install","seconds":0.0,"ok":true,"reused":true}');
INSERT INTO "events" VALUES(26,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:44.131724','stage.started','system','start','{"stage":"start"}');
INSERT INTO "events" VALUES(27,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:44.278451','sandbox.started','system','started','{"sandbox":"a6713ffda7cf1b8b","version":1,"attempt":1}');
INSERT INTO "events" VALUES(28,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:44.792231','stage.finished','system','start','{"stage":"start","seconds":0.661,"ok":true}');
INSERT INTO "events" VALUES(29,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:45.387334','stage.finished','system','passed','{"stage":"qa","seconds":0.565,"ok":true}');
INSERT INTO "events" VALUES(30,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:45.392374','builder.status','token cli','created by token cli','{"from":"creating","to":"running"}');
INSERT INTO "events" VALUES(31,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:45.491700','sandbox.ended','system','stopped','{"sandbox":"7e7d766ce14b15b5","version":1,"exit_code":143,"cause":"stopped"}');
INSERT INTO "events" VALUES(32,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','2026-11-27 16:23:45.604160','builder.status','token cli','stopped by token cli','{"from":"running","to":"stopped"}');
INSERT INTO "events" VALUES(33,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:45.716967','builder.deleted','token cli','deleted by token cli','{}');
INSERT INTO "events" VALUES(34,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:45.746124','sandbox.ended','system','stopped','{"sandbox":"a6713ffda7cf1b8b","version":1,"exit_code":143,"cause":"stopped"}');
INSERT INTO "events" VALUES(35,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-27 16:23:45.888395','builder.status','token cli','deleted by token cli','{"from":"running","to":"deleted"}');
CREATE TABLE idempotency (
	tenant_id TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	body_hash TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	created_at DATETIME NOT NULL, 
	builder_id TEXT, 
	status INTEGER, 
	headers JSON, 
	body JSON, version INTEGER, 
	CONSTRAINT pk_idempotency PRIMARY KEY (tenant_id, "key"), 
	CONSTRAINT fk_idempotency_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
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
	CONSTRAINT fk_ledger_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id), 
	CONSTRAINT fk_ledger_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
INSERT INTO "ledger" VALUES(1,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','stopped','2026-11-27 16:23:33.484566','2026-11-27 16:23:33.977386','0.01650');
INSERT INTO "ledger" VALUES(2,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','running','2026-11-27 16:23:33.977386','2026-11-27 16:23:36.387700','0.19650');
INSERT INTO "ledger" VALUES(3,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','stopped','2026-11-27 16:23:36.387700','2026-11-27 16:23:36.673353','0.01650');
INSERT INTO "ledger" VALUES(4,'c6f35fac-3590-4a69-9bbd-74ec8a997665','328f175a-cee6-4045-b678-4e0e885d36ac','running','2026-11-27 16:23:36.673353',NULL,'0.19650');
INSERT INTO "ledger" VALUES(5,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','stopped','2026-11-27 16:23:42.879389','2026-11-27 16:23:43.017063','0.01650');
INSERT INTO "ledger" VALUES(6,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','running','2026-11-27 16:23:43.017063','2026-11-27 16:23:45.491700','0.19650');
INSERT INTO "ledger" VALUES(7,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','stopped','2026-11-27 16:23:44.117488','2026-11-27 16:23:44.278451','0.01650');
INSERT INTO "ledger" VALUES(8,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','running','2026-11-27 16:23:44.278451','2026-11-27 16:23:45.746124','0.19650');
INSERT INTO "ledger" VALUES(9,'c6f35fac-3590-4a69-9bbd-74ec8a997665','6eae3cea-221f-409d-9b0b-578aed649605','stopped','2026-11-27 16:23:45.491700',NULL,'0.01650');
INSERT INTO "ledger" VALUES(10,'c6f35fac-3590-4a69-9bbd-74ec8a997665','4a668436-d979-4318-a3ac-ed3812e59db9','stopped','2026-11-27 16:23:45.746124','2026-11-27 16:23:45.888395','0.01650');
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
INSERT INTO "ledger_months" VALUES('328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-01 00:00:00.000000','c6f35fac-3590-4a69-9bbd-74ec8a997665','2.410314','0.48647150550');
INSERT INTO "ledger_months" VALUES('6eae3cea-221f-409d-9b0b-578aed649605','2026-11-01 00:00:00.000000','c6f35fac-3590-4a69-9bbd-74ec8a997665','2.474637','0.48853779150');
INSERT INTO "ledger_months" VALUES('4a668436-d979-4318-a3ac-ed3812e59db9','2026-11-01 00:00:00.000000','c6f35fac-3590-4a69-9bbd-74ec8a997665','1.467673','0.29340110550');
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
	CONSTRAINT pk_metrics PRIMARY KEY (builder_id, start)
);
INSERT INTO "metrics" VALUES('328f175a-cee6-4045-b678-4e0e885d36ac','2026-11-27 16:20:00.000000',0.087169,0.00709782,8.81899233279999898e+04,1011712,16384,90,0,0,0,0,0,0);
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
INSERT INTO "qa_reports" VALUES('328f175a-cee6-4045-b678-4e0e885d36ac',1,'none','[{"name":"port","outcome":"passed","message":"The app listened on 0.0.0.0:8000 0.38 s after its start.","seconds":0.383,"findings":[]},{"name":"answer","outcome":"passed","message":"GET / was answered 200 OK in 0.043 s.","seconds":0.043,"findings":[]},{"name":"alive","outcome":"passed","message":"The app was up still 0.5 s after GET /.","seconds":0.5,"findings":[]},{"name":"memory","outcome":"passed","message":"Nothing was killed for want of memory.","seconds":0.0,"findings":[]}]','2026-11-27 16:23:34.996213','[]','[]','','',NULL,NULL,NULL,0,'',NULL);
INSERT INTO "qa_reports" VALUES('328f175a-cee6-4045-b678-4e0e885d36ac',2,'none','[{"name":"port","outcome":"passed","message":"The app listened on 0.0.0.0:8000 0.45 s after its start.","seconds":0.446,"findings":[]},{"name":"answer","outcome":"passed","message":"GET / was answered 200 OK in 0.012 s.","seconds":0.012,"findings":[]},{"name":"alive","outcome":"passed","message":"The app was up still 0.5 s after GET /.","seconds":0.5,"findings":[]},{"name":"memory","outcome":"passed","message":"Nothing was killed for want of memory.","seconds":0.0,"findings":[]}]','2026-11-27 16:23:37.725344','[]','[]','','',NULL,NULL,NULL,0,'',NULL);
INSERT INTO "qa_reports" VALUES('6eae3cea-221f-409d-9b0b-578aed649605',1,'none','[{"name":"port","outcome":"passed","message":"The app listened on 0.0.0.0:8000 0.31 s after its start.","seconds":0.311,"findings":[]},{"name":"answer","outcome":"passed","message":"GET / was answered 200 OK in 0.026 s.","seconds":0.026,"findings":[]},{"name":"alive","outcome":"passed","message":"The app was up still 0.5 s after GET /.","seconds":0.5,"findings":[]},{"name":"memory","outcome":"passed","message":"Nothing was killed for want of memory.","seconds":0.0,"findings":[]}]','2026-11-27 16:23:43.930404','[]','[]','','',NULL,NULL,NULL,0,'',NULL);
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
	CONSTRAINT pk_restores PRIMARY KEY (id), 
	CONSTRAINT fk_restores_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id), 
	CONSTRAINT fk_restores_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id), 
	CONSTRAINT fk_restores_backup_id FOREIGN KEY(backup_id) REFERENCES backups (id)
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
	end_at DATETIME, disk TEXT DEFAULT '' NOT NULL, trial BOOLEAN DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_sandboxes PRIMARY KEY (id), 
	CONSTRAINT ck_sandboxes_attempt CHECK (attempt >= 1), 
	CONSTRAINT ck_sandboxes_end CHECK (end_cause IS NOT NULL OR (end_exit_code IS NULL AND end_at IS NULL)), 
	CONSTRAINT fk_sandboxes_version FOREIGN KEY(builder_id, version) REFERENCES versions (builder_id, number), 
	CONSTRAINT uq_sandboxes_builder_id_run_attempt UNIQUE (builder_id, run, attempt)
);
INSERT INTO "sandboxes" VALUES('1a3f646dd6f3e1ba','328f175a-cee6-4045-b678-4e0e885d36ac',1,1,1,'2026-11-27 16:23:33.545917','10.80.232.2','2026-11-27 16:23:33.977386','2026-11-27 16:23:34.360102','stopped',143,'2026-11-27 16:23:36.387700','d7b98a6d-9e8c-413b-8530-41cb48561120',0);
INSERT INTO "sandboxes" VALUES('dc573a5129aad414','328f175a-cee6-4045-b678-4e0e885d36ac',2,1,2,'2026-11-27 16:23:35.474832',NULL,'2026-11-27 16:23:35.811457','2026-11-27 16:23:36.247961','stopped',NULL,'2026-11-27 16:23:36.342787','d4c38d41-7081-488c-b395-cefec34c3916',1);
INSERT INTO "sandboxes" VALUES('90051fbb0ec9f014','328f175a-cee6-4045-b678-4e0e885d36ac',2,2,1,'2026-11-27 16:23:36.555110','10.80.232.4','2026-11-27 16:23:36.673353','2026-11-27 16:23:37.119825',NULL,NULL,NULL,'da3bd6f9-6bc7-4825-af58-29a24a0411a3',0);
INSERT INTO "sandboxes" VALUES('7e7d766ce14b15b5','6eae3cea-221f-409d-9b0b-578aed649605',1,1,1,'2026-11-27 16:23:42.901366','10.80.232.9','2026-11-27 16:23:43.017063','2026-11-27 16:23:43.328178','stopped',143,'2026-11-27 16:23:45.491700','0f789e7c-673d-4b9f-b1a8-0a0f1667523c',0);
INSERT INTO "sandboxes" VALUES('a6713ffda7cf1b8b','4a668436-d979-4318-a3ac-ed3812e59db9',1,1,1,'2026-11-27 16:23:44.131724','10.80.232.10','2026-11-27 16:23:44.278451','2026-11-27 16:23:44.792191','stopped',143,'2026-11-27 16:23:45.746124','fc83193a-0b81-46bb-8c4a-22ebf00ad477',0);
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
	CONSTRAINT pk_ssh_grants PRIMARY KEY (id), 
	CONSTRAINT fk_ssh_grants_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id), 
	CONSTRAINT fk_ssh_grants_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id), 
	CONSTRAINT uq_ssh_grants_secret_hash UNIQUE (secret_hash)
);
CREATE TABLE tenants (
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	created_at DATETIME NOT NULL, spending_cap TEXT, cap_warned_at DATETIME, spending_due_at DATETIME, 
	CONSTRAINT pk_tenants PRIMARY KEY (id), 
	CONSTRAINT uq_tenants_name UNIQUE (name)
);
INSERT INTO "tenants" VALUES('c6f35fac-3590-4a69-9bbd-74ec8a997665','acme','2026-11-27 16:23:29.829131',NULL,NULL,NULL);
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
	CONSTRAINT pk_tokens PRIMARY KEY (id), 
	CONSTRAINT fk_tokens_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id), 
	CONSTRAINT uq_tokens_secret_hash UNIQUE (secret_hash)
);
INSERT INTO "tokens" VALUES('411e891c-14db-4a07-94f1-085fee9c10c2','c6f35fac-3590-4a69-9bbd-74ec8a997665','cli','98e91482fa2ba88cf83eb0fb53120a28ce6d1259b928d6d1af74245165b84d3e','["write"]','2026-11-27 16:23:29.829131',NULL,NULL,'2026-11-27 16:23:33.040002');
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
	qa_passed BOOLEAN, failure_code TEXT, rolled_back_to INTEGER, fresh_since INTEGER, install_scripts BOOLEAN DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_versions PRIMARY KEY (builder_id, number), 
	CONSTRAINT ck_versions_resources CHECK (cpu > 0 AND memory > 0 AND disk > 0), 
	CONSTRAINT ck_versions_number CHECK (number >= 1), 
	CONSTRAINT ck_versions_port CHECK (port BETWEEN 1 AND 65535), 
	CONSTRAINT fk_versions_builder_id FOREIGN KEY(builder_id) REFERENCES builders (id)
);
INSERT INTO "versions" VALUES('328f175a-cee6-4045-b678-4e0e885d36ac',1,'e7fd791b6b90ed62fea73a8d8f0746d1181e9c2582a59f4f8352136ecde81c0f','python3 main.py',8000,'{"GREETING":"from the old version"}',1.0,1.0,3.0,'standard','["mail"]',0,0,0,'token cli','2026-11-27 16:23:33.251531','deployed','','',NULL,1,NULL,NULL,NULL,0);
INSERT INTO "versions" VALUES('328f175a-cee6-4045-b678-4e0e885d36ac',2,'e7fd791b6b90ed62fea73a8d8f0746d1181e9c2582a59f4f8352136ecde81c0f','python3 main.py',8000,'{"GREETING":"from an old database"}',1.0,1.0,3.0,'standard','["mail"]',0,0,0,'token cli','2026-11-27 16:23:35.327141','deployed','','',NULL,1,NULL,NULL,NULL,0);
INSERT INTO "versions" VALUES('6eae3cea-221f-409d-9b0b-578aed649605',1,'e7fd791b6b90ed62fea73a8d8f0746d1181e9c2582a59f4f8352136ecde81c0f','python3 main.py',8000,'{}',1.0,1.0,3.0,'standard','[]',0,0,0,'token cli','2026-11-27 16:23:42.791619','deployed','','',NULL,1,NULL,NULL,NULL,0);
INSERT INTO "versions" VALUES('4a668436-d979-4318-a3ac-ed3812e59db9',1,'e7fd791b6b90ed62fea73a8d8f0746d1181e9c2582a59f4f8352136ecde81c0f','python3 main.py',8000,'{}',1.0,1.0,3.0,'standard','[]',0,0,0,'token cli','2026-11-27 16:23:44.093030','deployed','','',NULL,1,NULL,NULL,NULL,0);
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
	CONSTRAINT pk_webhooks PRIMARY KEY (id), 
	CONSTRAINT fk_webhooks_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
CREATE INDEX ix_tokens_tenant_id ON tokens (tenant_id);
CREATE INDEX ix_builders_tenant_id_created_at ON builders (tenant_id, created_at);
CREATE UNIQUE INDEX uq_builders_live_host ON builders (host) WHERE desired <> 'deleted';
CREATE UNIQUE INDEX uq_builders_live_name ON builders (tenant_id, name) WHERE desired <> 'deleted';
CREATE UNIQUE INDEX uq_builders_service_token ON builders (service_token);
CREATE INDEX ix_builders_due ON builders (coalesce(claimed_until, due_at));
CREATE INDEX ix_versions_bundle_hash ON versions (bundle_hash);
CREATE INDEX ix_ledger_builder_id_started_at ON ledger (builder_id, started_at);
CREATE UNIQUE INDEX uq_ledger_open ON ledger (builder_id) WHERE ended_at IS NULL;
CREATE INDEX ix_build_logs_builder_id_id ON build_logs (builder_id, id);
CREATE INDEX ix_idempotency_created_at ON idempotency (created_at);
CREATE UNIQUE INDEX uq_sandboxes_open ON sandboxes (builder_id, trial) WHERE end_cause IS NULL;
CREATE INDEX ix_tenants_spending_due_at ON tenants (spending_due_at);
CREATE INDEX ix_ledger_months_tenant_id_month ON ledger_months (tenant_id, month);
CREATE INDEX ix_events_builder_id_id ON events (builder_id, id);
CREATE INDEX ix_events_tenant_id_id ON events (tenant_id, id);
CREATE INDEX ix_backups_status ON backups (status);
CREATE INDEX ix_backups_expires_at ON backups (expires_at);
CREATE INDEX ix_backups_builder_id_created_at ON backups (builder_id, created_at);
CREATE INDEX ix_backups_tenant_id_created_at ON backups (tenant_id, created_at);
CREATE INDEX ix_restores_backup_id ON restores (backup_id);
CREATE INDEX ix_restores_status ON restores (status);
CREATE INDEX ix_leases_builder_id ON leases (builder_id);
CREATE INDEX ix_webhooks_tenant_id ON webhooks (tenant_id);
CREATE INDEX ix_deliveries_webhook_id_status_due_at ON deliveries (webhook_id, status, due_at);
CREATE INDEX ix_ssh_grants_builder_id ON ssh_grants (builder_id);
CREATE INDEX ix_metrics_start ON metrics (start);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',35);
COMMIT;
