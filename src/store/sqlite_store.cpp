#include "store/sqlite_store.h"

#include <sqlite3.h>

#include <string_view>

#include "base/status.h"

namespace godwit::store {
namespace {

constexpr char kSchema[] =
    "PRAGMA locking_mode=EXCLUSIVE;"
    "PRAGMA journal_mode=WAL;"
    "PRAGMA synchronous=FULL;"
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS entries("
    "  key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;"
    // One row: the last revision given out, which must not come back after a removal.
    "CREATE TABLE IF NOT EXISTS counter("
    "  one INTEGER PRIMARY KEY CHECK(one=1), revision INTEGER NOT NULL);"
    "INSERT OR IGNORE INTO counter VALUES(1, 0);"
    "COMMIT;";

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
  const int made = sqlite3_exec(db, kSchema, nullptr, nullptr, nullptr);
  if (made == SQLITE_BUSY)
    return make_error(absl::StatusCode::kUnavailable, "{}: another process has this store open",
                      path);
  if (made != SQLITE_OK) return result->error(fmt::format("making the tables in {}", path).c_str());
  GW_RETURN_IF_ERROR(result->prepare());
  return result;
}

SqliteStore::~SqliteStore() {
  for (sqlite3_stmt* s : {begin_, commit_, rollback_, get_, list_, put_, remove_, bump_})
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
      {&get_, "SELECT value, revision FROM entries WHERE key=?1"},
      // substr, not LIKE: keys are bytes, and LIKE has its own meaning for % and _.
      {&list_,
       "SELECT key, value, revision FROM entries"
       " WHERE key>=?1 AND substr(key,1,?2)=?1 ORDER BY key"},
      {&put_, "INSERT OR REPLACE INTO entries VALUES(?1, ?2, ?3)"},
      {&remove_, "DELETE FROM entries WHERE key=?1"},
      {&bump_, "UPDATE counter SET revision=revision+1 RETURNING revision"},
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

absl::StatusOr<Revision> SqliteStore::next_revision() {
  Use use(bump_);
  if (sqlite3_step(bump_) != SQLITE_ROW) return error("counting");
  const Revision next = sqlite3_column_int64(bump_, 0);
  // RETURNING hands the row out before the statement ends.
  if (sqlite3_step(bump_) != SQLITE_DONE) return error("counting");
  return next;
}

absl::StatusOr<Revision> SqliteStore::swap_in_transaction(const std::string& key, Revision expected,
                                                          const std::string& value) {
  GW_ASSIGN_OR_RETURN(const Revision found, revision_of(key));
  if (found != expected) return stale(key, expected, found);
  GW_ASSIGN_OR_RETURN(const Revision next, next_revision());
  {
    Use use(put_);
    bind_bytes(put_, 1, key);
    bind_bytes(put_, 2, value);
    sqlite3_bind_int64(put_, 3, next);
    if (sqlite3_step(put_) != SQLITE_DONE) return error("put");
  }
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
  GW_RETURN_IF_ERROR(next_revision().status());
  {
    Use use(remove_);
    bind_bytes(remove_, 1, key);
    if (sqlite3_step(remove_) != SQLITE_DONE) return error("remove");
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::remove(const std::string& key, Revision expected) {
  std::lock_guard lock(mutex_);
  if (absl::Status begun = step_once(begin_, "BEGIN"); !begun.ok()) return refused(begun);
  return end_transaction(remove_in_transaction(key, expected));
}

}  // namespace godwit::store
