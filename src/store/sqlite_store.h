// The embedded keeper: one SQLite file (https://www.sqlite.org/wal.html) in WAL mode with
// synchronous=FULL, so that an answered change survives the loss of power; one connection behind a
// mutex, its statements prepared once, since the commit of a migration waits for it.
#ifndef GODWIT_STORE_SQLITE_STORE_H_
#define GODWIT_STORE_SQLITE_STORE_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "store/store.h"

struct sqlite3;
struct sqlite3_stmt;

namespace godwit::store {

class SqliteStore : public Store {
 public:
  // Opens or creates. The file is locked for this process (kUnavailable if another one has it).
  static absl::StatusOr<std::unique_ptr<SqliteStore>> open(const std::string& path);
  ~SqliteStore() override;
  SqliteStore(const SqliteStore&) = delete;
  SqliteStore& operator=(const SqliteStore&) = delete;

  absl::StatusOr<Entry> get(const std::string& key) override;
  absl::StatusOr<std::vector<Entry>> list(const std::string& prefix) override;
  absl::StatusOr<Revision> compare_and_swap(const std::string& key, Revision expected,
                                            const std::string& value) override;
  absl::Status remove(const std::string& key, Revision expected) override;

 private:
  explicit SqliteStore(sqlite3* db) : db_(db) {}
  absl::Status bring_up_to_date(const std::string& path);
  void make_room(const std::string& log);  // only speed is at stake
  absl::Status prepare();
  absl::Status read_last_revision();
  // What a query says whose result is one number.
  absl::StatusOr<int64_t> number(const char* sql);
  absl::Status error(const char* what) const;
  absl::Status step_once(sqlite3_stmt* statement, const char* what);
  // Revision of `key` now, 0 if there is none.
  absl::StatusOr<Revision> revision_of(const std::string& key);
  absl::StatusOr<Revision> swap_in_transaction(const std::string& key, Revision expected,
                                               const std::string& value);
  absl::Status remove_in_transaction(const std::string& key, Revision expected);
  // Commits, or takes back what `changed` says has failed.
  absl::Status end_transaction(const absl::Status& changed);

  std::mutex mutex_;
  sqlite3* db_;
  // The last one given out. The file is ours alone, so that no change has to write it down.
  Revision last_revision_ = 0;
  sqlite3_stmt* begin_ = nullptr;
  sqlite3_stmt* commit_ = nullptr;
  sqlite3_stmt* rollback_ = nullptr;
  sqlite3_stmt* get_ = nullptr;
  sqlite3_stmt* list_ = nullptr;
  sqlite3_stmt* add_ = nullptr;
  sqlite3_stmt* replace_ = nullptr;
  sqlite3_stmt* remove_ = nullptr;
  sqlite3_stmt* count_ = nullptr;
};

}  // namespace godwit::store

#endif  // GODWIT_STORE_SQLITE_STORE_H_
