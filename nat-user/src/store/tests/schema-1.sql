-- A store of schema 1, as the first release wrote it. Never change it: it stands for those at customers'.
PRAGMA application_id = 1701408878;
PRAGMA user_version = 1;
CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID, STRICT;
CREATE TABLE head (revision INTEGER NOT NULL, digest BLOB NOT NULL) STRICT;
INSERT INTO record VALUES ('closing', '0', '{"meter":0,"address":"203.0.113.3","account":"default","vm":"web","of_eip":false}');
INSERT INTO record VALUES ('eip', '203.0.113.0', '{"address":"203.0.113.0","pool":"default","account":"default","attached":{"private_ip":"10.0.0.2","meter":1},"carried":{"in_bytes":0,"in_packets":0,"out_bytes":0,"out_packets":0}}');
INSERT INTO record VALUES ('eip', '203.0.113.2', '{"address":"203.0.113.2","pool":"default","account":"default","attached":null,"carried":null}');
INSERT INTO record VALUES ('returned', '203.0.113.1', '{"address":"203.0.113.1","free_at":{"secs_since_epoch":60,"nanos_since_epoch":0}}');
INSERT INTO record VALUES ('returned', '203.0.113.3', '{"address":"203.0.113.3","free_at":{"secs_since_epoch":60,"nanos_since_epoch":0}}');
INSERT INTO record VALUES ('vm', 'web', '{"name":"web","private_ip":"10.0.0.2","account":"default","pool":"default","public_ip":null,"waiting_since":null}');
INSERT INTO head VALUES (6, x'1DB4BCBE4DEE9B0A903BF4B488B93110');
