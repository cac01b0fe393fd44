#include "store/sqlite_store.h"

#include <sqlite3.h>

#include <filesystem>
#include <string_view>
#include <system_error>

#include "base/status.h"

namespace godwit::store {
namespace {

constexpr char kSettings[] =
    "PRAGMA locking_mode=EXCLUSIVE;"
    "PRAGMA journal_mode=WAL;"
    "PRAGMA synchronous=FULL;";

// PRAGMA user_version. A change of a record writes one page, since the commit of a migration waits
// for it: what is read by key is beside what is changed, in a table with row ids, whose leaves take
// records of up to 4 KiB without overflow pages. In layout 0 it was four pages.
constexpr int kLayout = 2;

// From no file and from layout 0. The counter's third column keeps programs out that know no
// layout: they would begin an empty store in this file (their INSERT into it has two values).
constexpr char kUpgrade[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS entries("
    "  key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS counter("
    "  one INTEGER PRIMARY KEY CHECK(one=1), revision INTEGER NOT NULL);"
    "CREATE TABLE records("
    "  key BLOB NOT NULL UNIQUE, value BLOB NOT NULL, revision INTEGER NOT NULL);"
    "INSERT INTO records SELECT key, value, revision FROM entries;"
    "DROP TABLE entries;"
    // One row: a revision that was given out, and of those whose records are gone the last one, so
    // that none comes back.
    "INSERT OR IGNORE INTO counter VALUES(1, 0);"
    "ALTER TABLE counter ADD COLUMN layout INTEGER NOT NULL DEFAULT 2;"
    "PRAGMA user_version=2;"
    "COMMIT;";

// A commit that makes the log longer waits for the file system's journal as well as for the data.
// SQLite writes the log from its beginning again once all of it is in the database, and never cuts
// it: so it gets the length at which that is done by itself (1,000 pages, wal_autocheckpoint) at
// once.
constexpr uintmax_t kLogBytes = uintmax_t{4} << 20;
constexpr char kMakeRoom[] =
    "DROP TABLE IF EXISTS room;"
    "CREATE TABLE room(bytes BLOB);"
    "INSERT INTO room VALUES(zeroblob(4194304));"
    "DROP TABLE room;"
    "PRAGMA wal_checkpoint(RESTART);";
// On a disk that has no room for it.
constexpr char kGiveRoomBack[] =
    "DROP TABLE IF EXISTS room;"
    "PRAGMA wal_checkpoint(TRUNCATE);";

// A statement is usable again whatever way its use ends.
class Use {
 public:
  explicit Use(sqlite3_stmt* statement) : statement_(statement) {}
  ~Use() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  sqlite3_stmt* statement_;
};

int bind_bytes(sqlite3_stmt* statement, int at, std::string_view bytes) {
  // A null pointer would bind NULL: an empty value is a value.
  return sqlite3_bind_blob64(statement, at, bytes.empty() ? "" : bytes.data(), bytes.size(),
                             SQLITE_STATIC);
}

std::string column_bytes(sqlite3_stmt* statement, int column) {
  const void* data = sqlite3_column_blob(statement, column);
  const auto size = static_cast<size_t>(sqlite3_column_bytes(statement, column));
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), size);
}

// What failed before the COMMIT has changed nothing, and the caller is to know: nothing_changed().
absl::Status refused(const absl::Status& why) {
  if (absl::IsAborted(why)) return why;
  return make_error(absl::StatusCode::kFailedPrecondition, "{}", message_of(why));
}

absl::Status stale(const std::string& key, Revision expected, Revision found) {
  if (found == 0)
    return make_error(absl::StatusCode::kAborted, "{}: expected revision {}, there is none", key,
                      expected);
  return make_error(absl::StatusCode::kAborted, "{}: expected revision {}, found {}", key, expected,
                    found);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::open(const std::string& path) {
  sqlite3* db = nullptr;
  const int rc = sqlite3_open_v2(
      path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  // The handle is to be closed even when opening failed.
  std::unique_ptr<SqliteStore> result(new SqliteStore(db));
  if (rc != SQLITE_OK) return result->error(fmt::format("sqlite3_open_v2({})", path).c_str());
  GW_RETURN_IF_ERROR(result->bring_up_to_date(path));
  result->make_room(path + "-wal");
  GW_RETURN_IF_ERROR(result->prepare());
  GW_RETURN_IF_ERROR(result->read_last_revision());
  return result;
}

absl::Status SqliteStore::bring_up_to_date(const std::string& path) {
  const auto run = [&](const char* sql) -> absl::Status {
    const int rc = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
    if (rc == SQLITE_BUSY)
      return make_error(absl::StatusCode::kUnavailable, "{}: another process has this store open",
                        path);
    return rc == SQLITE_OK ? absl::OkStatus()
                           : error(fmt::format("making the tables in {}", path).c_str());
  };
  GW_RETURN_IF_ERROR(run(kSettings));
  GW_ASSIGN_OR_RETURN(const int64_t layout, number("PRAGMA user_version"));
  if (layout == kLayout) return absl::OkStatus();
  if (layout != 0)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "{} has layout {}; this version of godwit knows up to {}", path, layout,
                      kLayout);
  return run(kUpgrade);
}

void SqliteStore::make_room(const std::string& log) {
  // Kept when the store is closed.
  int keep = 1;
  sqlite3_file_control(db_, nullptr, SQLITE_FCNTL_PERSIST_WAL, &keep);
  std::error_code missing;
  const uintmax_t size = std::filesystem::file_size(log, missing);
  if (!missing && size >= kLogBytes) return;
  if (sqlite3_exec(db_, kMakeRoom, nullptr, nullptr, nullptr) != SQLITE_OK)
    sqlite3_exec(db_, kGiveRoomBack, nullptr, nullptr, nullptr);
}

absl::StatusOr<int64_t> SqliteStore::number(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(db_, sql, -1, &statement, nullptr) != SQLITE_OK) return error(sql);
  const int rc = sqlite3_step(statement);
  const int64_t result = rc == SQLITE_ROW ? sqlite3_column_int64(statement, 0) : 0;
  const absl::Status read = rc == SQLITE_ROW ? absl::OkStatus() : error(sql);
  sqlite3_finalize(statement);
  GW_RETURN_IF_ERROR(read);
  return result;
}

absl::Status SqliteStore::read_last_revision() {
  GW_ASSIGN_OR_RETURN(last_revision_, number("SELECT max((SELECT revision FROM counter),"
                                             " (SELECT ifnull(max(revision), 0) FROM records))"));
  return absl::OkStatus();
}

SqliteStore::~SqliteStore() {
  for (sqlite3_stmt* s : {begin_, commit_, rollback_, get_, list_, add_, replace_, remove_, count_})
    sqlite3_finalize(s);
  sqlite3_close(db_);
}

absl::Status SqliteStore::prepare() {
  const struct {
    sqlite3_stmt** statement;
    const char* sql;
  } all[] = {
      {&begin_, "BEGIN IMMEDIATE"},
      {&commit_, "COMMIT"},
      {&rollback_, "ROLLBACK"},
      {&get_, "SELECT value, revision FROM records WHERE key=?1"},
      // substr, not LIKE: keys are bytes, and LIKE has its own meaning for % and _.
      {&list_,
       "SELECT key, value, revision FROM records"
       " WHERE key>=?1 AND substr(key,1,?2)=?1 ORDER BY key"},
      {&add_, "INSERT INTO records VALUES(?1, ?2, ?3)"},
      {&replace_, "UPDATE records SET value=?2, revision=?3 WHERE key=?1 AND revision=?4"},
      {&remove_, "DELETE FROM records WHERE key=?1"},
      {&count_, "UPDATE counter SET revision=?1"},
  };
  for (const auto& each : all) {
    if (sqlite3_prepare_v3(db_, each.sql, -1, SQLITE_PREPARE_PERSISTENT, each.statement, nullptr) !=
        SQLITE_OK)
      return error(each.sql);
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::error(const char* what) const {
  const int code = db_ == nullptr ? SQLITE_NOMEM : sqlite3_errcode(db_);
  const auto kind = code == SQLITE_FULL ? absl::StatusCode::kResourceExhausted
                    : code == SQLITE_CORRUPT || code == SQLITE_NOTADB ? absl::StatusCode::kDataLoss
                                                                      : absl::StatusCode::kInternal;
  return make_error(kind, "{}: {}", what, db_ == nullptr ? "out of memory" : sqlite3_errmsg(db_));
}

absl::Status SqliteStore::step_once(sqlite3_stmt* statement, const char* what) {
  Use use(statement);
  const int rc = sqlite3_step(statement);
  if (rc != SQLITE_DONE && rc != SQLITE_ROW) return error(what);
  return absl::OkStatus();
}

absl::StatusOr<Entry> SqliteStore::get(const std::string& key) {
  std::lock_guard lock(mutex_);
  Use use(get_);
  bind_bytes(get_, 1, key);
  const int rc = sqlite3_step(get_);
  if (rc == SQLITE_DONE)
    return make_error(absl::StatusCode::kNotFound, "{}: not in the store", key);
  if (rc != SQLITE_ROW) return error("get");
  return Entry{key, column_bytes(get_, 0), sqlite3_column_int64(get_, 1)};
}

absl::StatusOr<std::vector<Entry>> SqliteStore::list(const std::string& prefix) {
  std::lock_guard lock(mutex_);
  Use use(list_);
  bind_bytes(list_, 1, prefix);
  sqlite3_bind_int64(list_, 2, static_cast<sqlite3_int64>(prefix.size()));
  std::vector<Entry> result;
  while (true) {
    const int rc = sqlite3_step(list_);
    if (rc == SQLITE_DONE) return result;
    if (rc != SQLITE_ROW) return error("list");
    result.push_back(
        {column_bytes(list_, 0), column_bytes(list_, 1), sqlite3_column_int64(list_, 2)});
  }
}

absl::StatusOr<Revision> SqliteStore::revision_of(const std::string& key) {
  Use use(get_);
  bind_bytes(get_, 1, key);
  const int rc = sqlite3_step(get_);
  if (rc == SQLITE_DONE) return Revision{0};
  if (rc != SQLITE_ROW) return error("get");
  return sqlite3_column_int64(get_, 1);
}

absl::StatusOr<Revision> SqliteStore::swap_in_transaction(const std::string& key, Revision expected,
                                                          const std::string& value) {
  if (expected == kMustNotExist) {
    GW_ASSIGN_OR_RETURN(const Revision found, revision_of(key));
    if (found != kMustNotExist) return stale(key, expected, found);
  }
  sqlite3_stmt* const statement = expected == kMustNotExist ? add_ : replace_;
  const Revision next = last_revision_ + 1;
  {
    Use use(statement);
    bind_bytes(statement, 1, key);
    bind_bytes(statement, 2, value);
    sqlite3_bind_int64(statement, 3, next);
    if (expected != kMustNotExist) sqlite3_bind_int64(statement, 4, expected);
    if (sqlite3_step(statement) != SQLITE_DONE) return error("put");
  }
  if (sqlite3_changes(db_) == 0) {
    GW_ASSIGN_OR_RETURN(const Revision found, revision_of(key));
    return stale(key, expected, found);
  }
  last_revision_ = next;
  return next;
}

// A failed COMMIT may be found in the log after a restart, unless the disk was full: then its last
// frame, which makes it valid, was not written.
absl::Status SqliteStore::end_transaction(const absl::Status& changed) {
  const absl::Status done = changed.ok() ? step_once(commit_, "COMMIT") : refused(changed);
  if (done.ok()) return done;
  step_once(rollback_, "ROLLBACK").IgnoreError();
  return absl::IsResourceExhausted(done) ? refused(done) : done;
}

absl::StatusOr<Revision> SqliteStore::compare_and_swap(const std::string& key, Revision expected,
                                                       const std::string& value) {
  std::lock_guard lock(mutex_);
  if (absl::Status begun = step_once(begin_, "BEGIN"); !begun.ok()) return refused(begun);
  auto result = swap_in_transaction(key, expected, value);
  GW_RETURN_IF_ERROR(end_transaction(result.status()));
  return result;
}

absl::Status SqliteStore::remove_in_transaction(const std::string& key, Revision expected) {
  GW_ASSIGN_OR_RETURN(const Revision found, revision_of(key));
  if (found != expected) return stale(key, expected, found);
  {
    Use use(remove_);
    bind_bytes(remove_, 1, key);
    if (sqlite3_step(remove_) != SQLITE_DONE) return error("remove");
  }
  // No record may tell any more what was given out.
  Use use(count_);
  sqlite3_bind_int64(count_, 1, last_revision_);
  return sqlite3_step(count_) == SQLITE_DONE ? absl::OkStatus() : error("counting");
}

absl::Status SqliteStore::remove(const std::string& key, Revision expected) {
  std::lock_guard lock(mutex_);
  if (absl::Status begun = step_once(begin_, "BEGIN"); !begun.ok()) return refused(begun);
  return end_transaction(remove_in_transaction(key, expected));
}

}  // namespace godwit::store
