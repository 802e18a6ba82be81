# make run, make test and make bench install what is missing first (scripts/deps); see README.md.
BUILD ?= build
ARGS ?=

.PHONY: all build run test test-long test-clients bench install format lint deps clean
all: build

deps:
	@scripts/deps </dev/null

build: deps
	@scripts/build $(BUILD) </dev/null

run: build
	@scripts/run $(BUILD) $(ARGS)

test: build
	@scripts/test $(BUILD) </dev/null

# KVM clients under the preload library (docs/clients.md)
test-clients: build
	@scripts/test $(BUILD) clients </dev/null

# All that can run hardened, src/kvm's locks under ThreadSanitizer for ten minutes, then the differential harness with 10,000
# cases for each form: about an hour and a half.
test-long: build
	meson test -C $(BUILD) --no-rebuild --print-errorlogs --suite hardened
	TSAN_OPTIONS=exitcode=66:history_size=7:suppressions=tests/fuzz/tsan.supp $(BUILD)/tests/fuzz/fuzz_locks --engine interp \
		--seconds 600
	for m in 64 32 16; do for q in int vec; do $(BUILD)/tests/isa/isa -m $$m -q $$q -n 10000 || exit 1; done; done

bench: build
	@scripts/bench $(BUILD) </dev/null

install: build
	meson install -C $(BUILD)

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

lint: build
	scripts/lint

clean:
	rm -rf $(BUILD) build-*
