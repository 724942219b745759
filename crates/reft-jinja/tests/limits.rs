//! What a template may use, and that it can never do more.

use reft_jinja::{Settings, Template};

/// The error of a template that must reach a limit.
fn limit(source: &str) -> String {
    let template = Template::compile(source, Settings::default()).expect("compiled");
    template.render([], None).expect_err("a limit").to_string()
}

#[test]
fn hostile_templates_end_with_an_error() {
    let error = limit("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
    assert!(error.contains("steps") || error.contains("MiB"), "{error}");
    let error = limit("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
    assert_eq!(error, "line 1: the template takes more than 10000000 steps");
    let error = limit("{{ 'x' * 100000000 }}");
    assert_eq!(error, "line 1: the template creates a text of more than 32 MiB");
    let doubled = "{% set ns = namespace(x='0123456789') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    assert!(limit(doubled).contains("MiB"));
    assert!(limit("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("levels deep"));
    assert!(limit("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}").contains("levels deep"));
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}";
    assert!(limit(nested).contains("levels deep"));
    let wide = "{% set ns = namespace(x=['x']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}";
    assert!(limit(wide).contains("MiB") || limit(wide).contains("steps"));
    let wide = "{% set ns = namespace(x=[], y=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}";
    assert!(limit(wide).contains("steps"));
    let many: String = (0..9999).map(|n| format!("{{% set a{n} = 1 %}}")).collect();
    assert!(limit(&(many + "{% for i in range(99999) %}{{ a9998 }}{% endfor %}")).contains("steps"));
    for source in [
        "{{ 'a' * 1000000 }}{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ [1]|tojson(indent=999999999) }}",
        "{{ 'x'|center(999999999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ [1, 2]|join('x' * 30000000) }}{{ range(99)|join('x' * 3000000) }}",
        "{{ 'x'.zfill(99999999999999999999999999) }}",
        "{{ [1] * 99999999999 }}",
        "{{ [1]|batch(999999999999, 'x')|list }}",
        "{{ [1]|slice(999999999999)|list }}",
    ] {
        limit(source);
    }
}

#[test]
fn recursion_fits_into_a_small_stack() {
    let nested = format!("{{{{ {}1{} }}}}", "(1 + ".repeat(55), ")".repeat(55));
    let blocks = "{% if 1 %}".repeat(50)
        + "{{ f("
        + &"[".repeat(8)
        + &"]".repeat(8)
        + ") }}"
        + &"{% endif %}".repeat(50);
    let sources = [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_string(),
        "{% macro f(x) %}{{ ((((f(f))))) if f is callable else [f(1)] }}{% endmacro %}{{ f() }}".to_string(),
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}".to_string(),
        "{% for x in [1] recursive %}{% for y in [1] %}{% if 1 %}{{ loop([1]) }}{% endif %}{% endfor %}{{ loop([1]) }}{% endfor %}".to_string(),
        format!("{{% macro f(x) %}}{blocks}{{% endmacro %}}{{{{ f() }}}}"),
        nested,
    ];
    let run = move || {
        for source in sources {
            let template = Template::compile(&source, Settings::default()).expect(&source);
            let _ = template.render([], None);
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(run).expect("started").join().expect("no overflow");
}

#[test]
fn deeply_nested_templates_are_errors() {
    for source in [
        format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(5000), "]".repeat(5000)),
        format!("{{{{ {}1 }}}}", "-".repeat(5000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(5000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(5000)),
        format!("{{{{ 1{} }}}}", "|abs".repeat(5000)),
        format!("{{{{ x{} }}}}", ".x".repeat(5000)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(5000)),
        "{% if 1 %}".repeat(5000) + &"{% endif %}".repeat(5000),
        format!("{{% set {}x{} = 1 %}}", "(".repeat(5000), ")".repeat(5000)),
    ] {
        Template::compile(&source, Settings::default()).expect_err("too deep");
    }
}
