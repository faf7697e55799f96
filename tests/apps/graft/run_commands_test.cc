// generate, chat, evaluate and adapter as a user runs them, on a tiny random model.

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#ifdef __APPLE__
#include <util.h>
#else
#include <pty.h>
#endif

#include "tests/support/program.h"
#include "tests/support/tiny_model.h"

namespace graft::app {
namespace {

namespace fs = std::filesystem;
using llm::testing::Outcome;
using llm::testing::read_text;
using llm::testing::TemporaryFolder;
using llm::testing::TinyModel;
using llm::testing::write_text;
using nlohmann::json;

class RunCommandsTest : public ::testing::Test {
 protected:
  RunCommandsTest() {
    TinyModel().write(model_);
    TinyModel{.seed = 2}.write(folder_.file("other.gguf"));
    fs::create_directory(folder_.file("data"));
    const std::string sample = R"({"prompt": "say it", "completion": "abab"})";
    for (const char* name : {"data/train.jsonl", "data/test.jsonl"}) {
      write_text(folder_.file(name), sample + "\n" + sample + "\n");
    }
  }

  Outcome run(const std::string& arguments, const std::string& input = "") const {
    return llm::testing::run_program(folder_, arguments, input);
  }

  // Taught to answer "say it" with "abab".
  void train() const {
    const Outcome trained =
        run("finetune --model " + model_ + " --data " + folder_.file("data") + " --adapter-path " +
            adapter_ + " --batch-size 2 --iters 80 --learning-rate 2e-2 --mask-prompt");
    ASSERT_EQ(trained.status, 0) << trained.err;
  }

  void expect_refusal(const std::string& arguments, int status, const std::string& words) const {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
    if (status == 1) {
      EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1) << outcome.err;
    }
  }

  const TemporaryFolder folder_;
  const std::string model_ = folder_.file("tiny.gguf");
  const std::string adapter_ = folder_.file("adapter");
  const std::vector<std::string> chat_ = {"chat", "--model", model_, "--max-tokens", "90000"};
  const std::string ask_ = "generate --model " + model_ + " --max-tokens 20 --prompt ";
};

TEST_F(RunCommandsTest, GenerateSamplesTheSameWithTheSameSeed) {
  const std::string sampled = ask_ + "ab --temp 1.5 --min-p 0.01 --repetition-penalty 1.1 --json ";
  const json first = json::parse(run(sampled + "--num-samples 3 --seed 4").out);
  ASSERT_EQ(first["samples"].size(), 3u);
  EXPECT_NE(first["samples"][0], first["samples"][1]);
  EXPECT_EQ(json::parse(run(sampled + "--num-samples 3 --seed 4").out)["samples"],
            first["samples"]);
  EXPECT_NE(json::parse(run(sampled + "--num-samples 3 --seed 5").out)["samples"],
            first["samples"]);
  // The first of several is the one that comes alone.
  EXPECT_EQ(json::parse(run(sampled + "--seed 4").out)["samples"][0], first["samples"][0]);

  EXPECT_EQ(run(ask_ + "-", "ab\n").out, run(ask_ + "ab").out);
  expect_refusal(ask_ + "ab --num-samples 2", 2, "--temp");
  expect_refusal(ask_ + "ab --stop ''", 2, "--stop");
  expect_refusal(ask_ + "ab --min-p 2", 2, "--min-p");
  expect_refusal(ask_ + "ab --temp 1 --top-p 0", 2, "--top-p");
}

TEST_F(RunCommandsTest, PromptsFromFilesAreTheSameWhoeverWroteThem) {
  const auto tokens = [&](const std::string& input, const std::string& more = "") {
    return json::parse(run(ask_ + "- --json" + more, input).out)["prompt_tokens"].get<int>();
  };
  for (const char* raw : {"", " --ignore-chat-template"}) {
    const int plain = tokens("Say\nhi\n", raw);
    EXPECT_EQ(tokens("Say\nhi", raw), plain);
    EXPECT_EQ(tokens("Say\r\nhi\r\n", raw), plain);
    EXPECT_EQ(tokens("\xEF\xBB\xBFSay\r\nhi\r\n", raw), plain);
    EXPECT_NE(tokens("Say\rhi\n", raw), tokens("Sayhi\n", raw));  // a lone one is text
  }
  // Bytes of what was given, with its mark, not of the template around it.
  const Outcome bad = run(ask_ + "-",
                          "\xEF\xBB\xBF"
                          "ab\xFF\n");
  EXPECT_EQ(bad.status, 1);
  EXPECT_EQ(bad.err, "graft: --prompt -: not valid UTF-8 at byte 6\n");

  const std::string chat = "chat --model " + model_ + " --max-tokens 5";
  EXPECT_EQ(run(chat, "\xEF\xBB\xBFhi\r\n").out, run(chat, "hi\n").out);
  EXPECT_NE(run(chat, "ab\xFF\n").err.find("at byte 3"), std::string::npos);
}

TEST_F(RunCommandsTest, MarksInAPromptAreTextUnlessAskedFor) {
  const std::string marked = ask_ + "'a<|im_end|>b' --json";
  const auto tokens = [&](const std::string& words) {
    return json::parse(run(words).out)["prompt_tokens"].get<int>();
  };
  for (const char* raw : {"", " --ignore-chat-template"}) {
    EXPECT_EQ(tokens(marked + raw), tokens(marked + " --parse-special" + raw) + 9);
  }
  for (const char* command : {"finetune", "generate", "chat", "evaluate"}) {
    EXPECT_NE(run(std::string(command) + " --help").out.find("--parse-special"), std::string::npos);
  }
}

TEST_F(RunCommandsTest, AdaptersKnowTheirModelByItsContents) {
  train();
  const std::string moved = folder_.file("moved.gguf"), link = folder_.file("link.gguf");
  fs::rename(model_, moved);
  fs::create_symlink(moved, link);
  const auto ask = [&](const std::string& model) {
    return run("generate --quiet --max-tokens 20 --prompt 'say it' --adapter-path " + adapter_ +
               " --model " + model);
  };
  for (const std::string& same : {moved, link}) {
    const Outcome outcome = ask(same);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "abab\n");
    EXPECT_EQ(outcome.err, "");
  }
  const Outcome resumed =
      run("finetune --resume --model " + link + " --adapter-path " + adapter_ + " --iters 81");
  EXPECT_EQ(resumed.status, 0) << resumed.err;

  // Of another model of the same sizes, which now has the old name.
  fs::rename(folder_.file("other.gguf"), model_);
  const Outcome other = ask(model_);
  EXPECT_EQ(other.status, 0) << other.err;
  EXPECT_TRUE(other.err.starts_with("graft: warning: the adapter in " + adapter_)) << other.err;
  EXPECT_EQ(other.err.find('\n'), other.err.size() - 1) << other.err;
  TinyModel{.hidden_size = 16}.write(model_);
  expect_refusal(ask_ + "x --adapter-path " + adapter_, 1, "expected (");
}

TEST_F(RunCommandsTest, PromptCachesSayWhatHasChanged) {
  train();
  const std::string with =
      ask_ + "x --adapter-path " + adapter_ + " --prompt-cache " + folder_.file("c.st");
  ASSERT_EQ(run(with).status, 0);
  ASSERT_EQ(run("finetune --resume --iters 81 --adapter-path " + adapter_).status, 0);
  expect_refusal(with, 1, "adapter " + adapter_ + ", which has changed since");
  TinyModel{.seed = 3}.write(model_);
  const Outcome other = run(with);
  EXPECT_EQ(other.status, 1);
  EXPECT_NE(other.err.find("model " + model_ + ", which has changed since"), std::string::npos)
      << other.err;
}

TEST_F(RunCommandsTest, GenerateStopsBeforeAStopString) {
  train();
  const std::string taught = ask_ + "'say it' --adapter-path " + adapter_;
  EXPECT_EQ(run(taught).out, "abab\n");
  EXPECT_NE(run(taught).err.find("tokens/s"), std::string::npos);
  const Outcome quiet = run(taught + " --quiet");
  EXPECT_EQ(quiet.out, "abab\n");
  EXPECT_EQ(quiet.err, "");
  EXPECT_EQ(run(taught + " --stop zz --stop ba").out, "a\n");
  const json one = json::parse(run(taught + " --stop ba --json").out)["samples"][0];
  EXPECT_EQ(one["text"], "a");
  EXPECT_EQ(one["finish_reason"], "stop");
}

TEST_F(RunCommandsTest, PromptCacheChangesNothingButTheTime) {
  train();
  const std::string cache = folder_.file("cache.safetensors");
  const std::string with = " --temp 1 --seed 3 --json --prompt-cache " + cache;
  const json plain = json::parse(run(ask_ + "'some words' --temp 1 --seed 3 --json").out);
  const json first = json::parse(run(ask_ + "'some words'" + with).out);
  const json second = json::parse(run(ask_ + "'some words'" + with).out);
  EXPECT_EQ(first["samples"], plain["samples"]);
  EXPECT_EQ(second["samples"], plain["samples"]);
  EXPECT_EQ(first["cached_tokens"], 0);
  EXPECT_EQ(second["cached_tokens"], second["prompt_tokens"].get<int>() - 1);
  EXPECT_GT(json::parse(run(ask_ + "'some other'" + with).out)["cached_tokens"], 10);

  expect_refusal(ask_ + "x --adapter-path " + adapter_ + with, 1, "without an adapter, not to");
  expect_refusal("generate --prompt x --model " + folder_.file("other.gguf") + with, 1,
                 "not to model " + folder_.file("other.gguf"));
  write_text(cache, "nonsense");
  expect_refusal(ask_ + "x" + with, 1, cache);
}

TEST_F(RunCommandsTest, EvaluateComparesWithTheBase) {
  train();
  const std::string exam = "evaluate --model " + model_ + " --data " + folder_.file("data");
  const Outcome alone = run(exam + " --adapter-path " + adapter_);
  EXPECT_NE(alone.out.find("perplexity"), std::string::npos) << alone.err;
  EXPECT_TRUE(alone.out.ends_with("exact match: 100.0 % (2 of 2)\n")) << alone.out;

  const std::string both = exam + " --mask-prompt --compare-base --adapter-path " + adapter_;
  const json result = json::parse(run(both + " --json").out);
  EXPECT_TRUE(result["data"].get<std::string>().ends_with("test.jsonl"));
  const json& base = result["results"]["base"];
  const json& tuned = result["results"]["adapter"];
  EXPECT_EQ(base["exact_match"]["right"], 0);
  EXPECT_EQ(tuned["exact_match"]["right"], 2);
  EXPECT_EQ(base["tokens"], tuned["tokens"]);
  EXPECT_LT(tuned["loss"], 0.1 * base["loss"].get<double>());
  EXPECT_EQ(tuned["answers"][0]["got"], "abab");
  EXPECT_NE(run(both).out.find("100.0 % (2 of 2)"), std::string::npos);

  const std::string piped =
      run("evaluate --model " + model_ + " --data /dev/stdin --adapter-path " + adapter_,
          read_text(folder_.file("data/test.jsonl")))
          .out;
  EXPECT_EQ(piped, alone.out);
  write_text(folder_.file("text.jsonl"), "{\"text\": \"some text\"}\n");
  const Outcome text = run("evaluate --model " + model_ + " --data " + folder_.file("text.jsonl"));
  EXPECT_EQ(text.status, 0) << text.err;
  EXPECT_EQ(text.out.find("exact match"), std::string::npos);
  write_text(folder_.file("long.jsonl"), "{\"text\": \"" + std::string(2000, 'x') + "\"}\n");
  // The tiny model's context is 128 tokens.
  for (const auto& [flag, length] : {std::pair{"100000", "128"}, std::pair{"50", "50"}}) {
    const Outcome cut = run("evaluate --model " + model_ + " --data " + folder_.file("long.jsonl") +
                            " --max-seq-length " + flag);
    EXPECT_NE(cut.out.find("1 samples cut off at " + std::string(length) + " tokens"),
              std::string::npos)
        << cut.out << cut.err;
  }
  expect_refusal(exam + " --split valid", 1, "--split");
  expect_refusal(exam + " --compare-base", 2, "--adapter-path");
}

TEST_F(RunCommandsTest, LostOutputIsAnError) {
  const std::string exam = "evaluate --model " + model_ + " --data " + folder_.file("data");
  for (const std::string& command : {exam, exam + " --json", ask_ + "ab --quiet"}) {
    EXPECT_EQ(run(command).status, 0) << command;
    expect_refusal(command + " > /dev/full", 1, "output");
  }
}

TEST_F(RunCommandsTest, RegistryServesEveryCommand) {
  train();
  EXPECT_NE(run("adapter list").out.find("no adapters"), std::string::npos);
  EXPECT_EQ(run("adapter add say " + adapter_).status, 0);  // finds its model by itself
  EXPECT_NE(run("adapter list").out.find("for tiny.gguf"), std::string::npos);
  EXPECT_EQ(json::parse(run("adapter list --json").out)["adapters"][0]["name"], "say");
  expect_refusal("adapter add say " + adapter_, 1, "--replace");
  expect_refusal("adapter add x " + folder_.file("nowhere"), 1, "nowhere");

  EXPECT_EQ(run(ask_ + "'say it' --adapter say").out, "abab\n");
  const std::string base = run(ask_ + "'say it'").out;
  EXPECT_NE(base, "abab\n");
  expect_refusal(ask_ + "x --adapter nope", 1, "there is say");
  expect_refusal(ask_ + "x --adapter say --adapter-path " + adapter_, 2, "--adapter");
  expect_refusal("generate --prompt x --adapter say --model " + folder_.file("other.gguf"), 1,
                 "another model");

  expect_refusal("adapter use", 2, "--none");
  EXPECT_EQ(run("adapter use say").status, 0);
  const Outcome by_default = run(ask_ + "'say it'");
  EXPECT_EQ(by_default.out, "abab\n");
  EXPECT_NE(by_default.err.find("--no-adapter"), std::string::npos);
  EXPECT_EQ(run(ask_ + "'say it' --no-adapter").out, base);
  EXPECT_EQ(run("generate --prompt x --model " + folder_.file("other.gguf")).status, 0);
  const std::string exam = "evaluate --model " + model_ + " --data " + folder_.file("data");
  EXPECT_NE(run(exam).out.find("(0 of 2)"), std::string::npos);  // measures what it is told to
  EXPECT_NE(run(exam + " --adapter say").out.find("(2 of 2)"), std::string::npos);

  EXPECT_EQ(run("adapter use --none").status, 0);
  expect_refusal("adapter remove say", 1, "--yes");
  EXPECT_EQ(run("adapter remove say --yes").status, 0);
  EXPECT_NE(run("adapter list").out.find("no adapters"), std::string::npos);
}

TEST_F(RunCommandsTest, ChatTakesALineATurnFromAPipe) {
  train();
  ASSERT_EQ(run("adapter add say " + adapter_).status, 0);
  const std::string chat = "chat --model " + model_ + " --max-tokens 8 ";
  const Outcome taught = run(chat + "--adapter say", "say it\n\n/reset\nsay it");
  EXPECT_EQ(taught.status, 0) << taught.err;
  EXPECT_EQ(taught.out, "abab\nabab\n");

  const Outcome switched =
      run(chat, "/adapter say\nsay it\n/reset\n/adapter none\nsay it\n/quit\nsay it\n");
  EXPECT_EQ(switched.status, 0) << switched.err;
  const std::string base = run(chat, "say it\n").out;
  EXPECT_EQ(switched.out, "abab\n" + base);

  const Outcome wrong = run(chat, "/nothing\n/adapter nope\nsay it\n");
  EXPECT_EQ(wrong.status, 1);
  EXPECT_EQ(wrong.out, base);
  EXPECT_NE(wrong.err.find("/help"), std::string::npos);
  const Outcome full =
      run(chat, std::string(60, 'x') + "\n" + std::string(60, 'y') + "\n/reset\nsay it\n");
  EXPECT_NE(full.err.find("context is full"), std::string::npos) << full.err;
  EXPECT_TRUE(full.out.ends_with(base));
}

/// The program on a terminal.
class TerminalRun {
 public:
  TerminalRun(const std::string& home, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "graft");
    std::vector<char*> words;
    for (std::string& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    pid_ = ::forkpty(&fd_, nullptr, nullptr, nullptr);
    if (pid_ == 0) {
      ::setenv("GRAFT_HOME", home.c_str(), 1);
      ::setenv("TERM", "xterm", 1);
      ::setenv("NO_COLOR", "1", 1);
      ::execv(GRAFT_TEST_PROGRAM, words.data());
      ::_exit(127);
    }
  }
  ~TerminalRun() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(fd_);
  }

  void type(const std::string& keys) const {
    ASSERT_EQ(::write(fd_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }

  // Waits until `words` are on the screen, after what was waited for before.
  bool sees(const std::string& words) {
    for (;;) {
      if (const std::size_t at = screen_.find(words, seen_); at != std::string::npos) {
        seen_ = at + words.size();
        return true;
      }
      pollfd ready{fd_, POLLIN, 0};
      char bytes[4096];
      if (::poll(&ready, 1, 20'000) <= 0) return false;
      const ssize_t count = ::read(fd_, bytes, sizeof bytes);
      if (count <= 0) return false;
      screen_.append(bytes, static_cast<std::size_t>(count));
    }
  }

  int wait() {
    sees("what never comes");  // until it has closed its end
    int status = -1;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  const std::string& screen() const { return screen_; }

  /// Whether Ctrl-C throws away what was typed, as it does on a terminal that nobody has changed.
  bool flushes() const {
    termios settings{};
    return ::tcgetattr(fd_, &settings) == 0 && (settings.c_lflag & NOFLSH) == 0;
  }

 private:
  int fd_ = -1;
  pid_t pid_ = -1;
  std::string screen_;
  std::size_t seen_ = 0;
};

constexpr const char* kCtrlC = "\x03";

TEST_F(RunCommandsTest, CtrlCStopsAReplyThenTheLineThenTheChat) {
  // A model whose reply does not end before someone stops it, and context for that.
  TinyModel{.context_length = 100'000}.write(model_);
  TerminalRun chat(folder_.file("home"), chat_);
  ASSERT_TRUE(chat.sees("Tiny"));
  ASSERT_TRUE(chat.sees("> "));
  chat.type("abba\n");
  ASSERT_TRUE(chat.sees("\n"));
  ::usleep(200'000);  // some way into the reply
  chat.type(kCtrlC);
  ASSERT_TRUE(chat.sees("(stopped")) << chat.screen();
  ASSERT_TRUE(chat.sees("> "));
  chat.type("half a line");
  ASSERT_TRUE(chat.sees("half a line"));
  chat.type(kCtrlC);
  ASSERT_TRUE(chat.sees("> ")) << chat.screen();
  chat.type("/help\n");
  ASSERT_TRUE(chat.sees("/quit")) << chat.screen();
  ASSERT_TRUE(chat.sees("> "));
  chat.type(kCtrlC);
  EXPECT_EQ(chat.wait(), 0);
  EXPECT_EQ(chat.screen().find("\x1b["), std::string::npos) << chat.screen();  // NO_COLOR
}

TEST_F(RunCommandsTest, CtrlDEndsTheChat) {
  TerminalRun chat(folder_.file("home"), chat_);
  ASSERT_TRUE(chat.sees("> "));
  chat.type("\x04");
  EXPECT_EQ(chat.wait(), 0);
}

TEST_F(RunCommandsTest, RemovesOnlyWhatIsConfirmed) {
  const std::string home = folder_.file("home"), entry = home + "/adapters/say";
  fs::create_directories(entry);
  const auto answer = [&](const std::string& keys) {
    TerminalRun removal(home, {"adapter", "remove", "say"});
    EXPECT_TRUE(removal.sees("[y/N] "));
    removal.type(keys);
    const int status = removal.wait();
    EXPECT_TRUE(removal.flushes());
    return status;
  };
  EXPECT_EQ(answer(kCtrlC), 130);
  EXPECT_EQ(answer(std::string("y") + kCtrlC), 130);
  EXPECT_EQ(answer("\x04"), 1);
  EXPECT_EQ(answer("n\n"), 1);
  EXPECT_TRUE(fs::exists(entry));
  EXPECT_EQ(answer("y\n"), 0);
  EXPECT_FALSE(fs::exists(entry));
}

}  // namespace
}  // namespace graft::app
