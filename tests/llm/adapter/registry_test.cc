#include "graft/llm/adapter/registry.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/data/fingerprint.h"
#include "graft/llm/files/atomic_file.h"
#include "graft/llm/files/folder_lock.h"
#include "graft/llm/user_error.h"
#include "tests/llm/adapter/small_config.h"
#include "tests/support/syncs.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

namespace fs = std::filesystem;
using testing::read_text;
using testing::small_config;
using testing::TemporaryFolder;
using testing::write_text;

class RegistryTest : public ::testing::Test {
 protected:
  RegistryTest() : registry_(folder_.file("registry")) {
    AdapterOptions options{.rank = 3, .alpha = 6.0f};
    options.targets = {Projection::kQ, Projection::kV};
    const AdapterLayout layout(config_, options);
    save_adapter(source_, layout, layout.initial_pairs(1), {"base.gguf"});
  }

  void add(const std::string& name, bool replace = false) {
    registry_.add(name, source_, model_, config_, replace);
  }

  static std::string message_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  }

  std::vector<std::string> names() const {
    std::vector<std::string> list;
    for (const AdapterRegistry::Entry& entry : registry_.list()) list.push_back(entry.name);
    return list;
  }

  const TemporaryFolder folder_;
  const LlamaConfig config_ = small_config();
  const ModelIdentity model_{"/models/base.gguf", "0123456789abcdef"};
  const std::string source_ = folder_.file("trained");
  AdapterRegistry registry_;
};

TEST_F(RegistryTest, KeepsACopyUnderAName) {
  EXPECT_TRUE(registry_.list().empty());
  write_text(source_ + "/loss.svg", "<svg/>");
  add("cron");
  fs::remove_all(source_);
  const std::string folder = registry_.find("cron", model_);
  EXPECT_EQ(load_adapter(folder, config_).layout.options().rank, 3);
  EXPECT_FALSE(fs::exists(folder + "/loss.svg"));

  const std::vector<AdapterRegistry::Entry> entries = registry_.list();
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_EQ(entries[0].name, "cron");
  EXPECT_EQ(entries[0].model.name, "/models/base.gguf");
  EXPECT_EQ(entries[0].rank, 3);
  EXPECT_EQ(entries[0].alpha, 6.0);
  EXPECT_EQ(entries[0].targets, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_GT(entries[0].bytes, 500);
  EXPECT_FALSE(entries[0].is_default);
  EXPECT_EQ(entries[0].problem, "");
}

TEST_F(RegistryTest, RefusesWhatIsNoAdapterOfThisModel) {
  EXPECT_NE(message_of([&] {
              registry_.add("x", folder_.file("no"), model_, config_, false);
            }).find(folder_.file("no")),
            std::string::npos);
  LlamaConfig other = config_;
  other.hidden_size = 24;
  const std::string message =
      message_of([&] { registry_.add("x", source_, model_, other, false); });
  EXPECT_NE(message.find(source_), std::string::npos) << message;  // not the copy's path
  EXPECT_NE(message.find("expected"), std::string::npos) << message;
  for (const fs::directory_entry& left : fs::directory_iterator(registry_.folder())) {
    ADD_FAILURE() << left.path() << " was left behind";
  }

  add("cron");
  EXPECT_NE(message_of([&] { add("cron"); }).find("--replace"), std::string::npos);
  EXPECT_EQ(message_of([&] { add("cron", true); }), "");
  EXPECT_EQ(names(), std::vector<std::string>{"cron"});
}

TEST_F(RegistryTest, WhatIsAddedIsOnDiskAndAloneThere) {
  // As a killed program left it.
  make_folder(registry_.folder());
  write_folder_atomically(registry_.folder() + "/.adding", {{"cron", "half"}});
  const testing::NotedSyncs syncs;
  for (const bool replace : {false, true}) {
    add("cron", replace);
    const std::string folder = registry_.find("cron", model_);
    for (const char* file : {"", "/adapter_config.json", "/adapter_model.safetensors"}) {
      EXPECT_TRUE(syncs.has(folder + file)) << file;
    }
    EXPECT_TRUE(syncs.has(registry_.folder()));
    EXPECT_EQ(std::distance(fs::directory_iterator(registry_.folder()), {}), 1);
  }
}

TEST_F(RegistryTest, IsWrittenByOneAtATime) {
  make_folder(registry_.folder());
  const FolderLock lock(registry_.folder());
  EXPECT_NE(message_of([&] { add("cron"); }).find("--registry"), std::string::npos);
}

TEST_F(RegistryTest, RefusesNamesThatCouldBePaths) {
  for (const char* name :
       {"", ".", "..", ".x", "a/b", "../a", "-a", "a b", "none", "default", "é"}) {
    EXPECT_NE(message_of([&] { add(name); }).find("adapter name"), std::string::npos) << name;
    EXPECT_THROW(registry_.remove(name), UserError) << name;
  }
  EXPECT_THROW(add(std::string(65, 'a')), UserError);
  EXPECT_NO_THROW(add(std::string(64, 'a')));
  EXPECT_NO_THROW(add("Cron_2.1-b"));
}

TEST_F(RegistryTest, FindsOnlyForTheModelItWasAddedFor) {
  add("cron");
  EXPECT_NE(message_of([&] { registry_.find("corn", model_); }).find("there is cron"),
            std::string::npos);
  const std::string message = message_of([&] {
    registry_.find("cron", {"/models/other.gguf", "fedcba9876543210"});
  });
  EXPECT_NE(message.find("another model, /models/base.gguf"), std::string::npos) << message;
  EXPECT_NE(message.find("graft adapter add"), std::string::npos) << message;
  EXPECT_NE(message_of([&] {
              registry_.find("cron", {"/models/base.gguf", "fedcba9876543210"});
            }).find("/models/base.gguf, which has changed since"),
            std::string::npos);
}

TEST_F(RegistryTest, HasOneDefaultThatGoesWithItsAdapter) {
  add("a");
  add("b");
  EXPECT_FALSE(registry_.default_name());
  EXPECT_THROW(registry_.set_default("c"), UserError);
  registry_.set_default("a");
  registry_.set_default("b");
  EXPECT_EQ(registry_.default_name(), "b");
  EXPECT_TRUE(registry_.list()[1].is_default);
  EXPECT_TRUE(registry_.default_fits(model_));
  EXPECT_FALSE(registry_.default_fits({"other", "00"}));
  registry_.remove("b");
  EXPECT_FALSE(registry_.default_name());
  EXPECT_EQ(names(), std::vector<std::string>{"a"});
  registry_.set_default("a");
  registry_.set_default(std::nullopt);
  EXPECT_FALSE(registry_.default_name());
}

TEST_F(RegistryTest, DamagedEntriesAreListedWithWhatIsWrong) {
  add("a");
  add("b");
  write_text(registry_.folder() + "/a/adapter_config.json", "{");
  fs::create_directory(registry_.folder() + "/c");
  const auto entries = registry_.list();
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_NE(entries[0].problem.find("adapter_config.json"), std::string::npos);
  EXPECT_EQ(entries[1].problem, "");
  EXPECT_NE(entries[2].problem, "");
  EXPECT_THROW(registry_.find("a", model_), UserError);
}

TEST_F(RegistryTest, UsualPlaceFollowsTheEnvironment) {
  ::setenv("GRAFT_HOME", "/g", 1);
  ::setenv("XDG_DATA_HOME", "/x", 1);
  ::setenv("HOME", "/h", 1);
  EXPECT_EQ(AdapterRegistry::default_folder(), "/g/adapters");
  ::unsetenv("GRAFT_HOME");
  EXPECT_EQ(AdapterRegistry("").folder(), "/x/graft/adapters");
  ::unsetenv("XDG_DATA_HOME");
  EXPECT_EQ(AdapterRegistry::default_folder(), "/h/.local/share/graft/adapters");
  ::unsetenv("HOME");
  EXPECT_NE(message_of([] { AdapterRegistry::default_folder(); }).find("--registry"),
            std::string::npos);
}

TEST(Fingerprint, DiffersWhereContentsDo) {
  const TemporaryFolder folder;
  const auto of = [&](const std::string& text) {
    write_text(folder.file("f"), text);
    return fingerprint_of_file(folder.file("f"));
  };
  EXPECT_EQ(of("abc").size(), 16u);
  EXPECT_EQ(of("abc"), of("abc"));
  EXPECT_NE(of("abc"), of("abd"));
  EXPECT_NE(of("abc"), of(std::string("abc\0", 4)));  // not the zeros that fill a word up
  EXPECT_NE(of(""), of(std::string(8, '\0')));
  const std::string large(3'000'001, 'x');
  std::string other = large;
  other[2'500'000] = 'y';
  EXPECT_NE(of(large), of(other));
  EXPECT_THROW(fingerprint_of_file(folder.file("none")), UserError);
}

}  // namespace
}  // namespace graft::llm
